"""asv plugin: describe an unknown machine by asv's own defaults, instead of asking on a terminal."""

from asv.machine import Machine, MachineCollection
from asv.util import UserError

_name = Machine.get_unique_machine_name()
try:
    MachineCollection.load(_name)
except UserError:
    MachineCollection.save(_name, Machine.get_defaults())
