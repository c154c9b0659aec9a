"""snnbench: what does each way of training a spiking neural network really cost?

The public API, for users and plugin authors. A plugin needs the contracts only.

>>> import snnbench
>>> spec = snnbench.cell("checkpoint", "convnet", "digits", T=4, batch=16, predicted=True)
>>> snnbench.measure_memory(spec).peak_live_bytes > 0
True

Which method lets a model of your own train within your memory, and training it with that method:

>>> from spikingjelly.activation_based import layer, neuron
>>> from torch import nn
>>> net = nn.Sequential(layer.Linear(8, 16), neuron.LIFNode(), layer.Linear(16, 3))
>>> plan = snnbench.plan(net, input=(4, 2, 8), budget="1GiB", methods=["bptt", "checkpoint"])
>>> model = plan.apply(net)
"""

from harness.api import (
    Applied,
    LivePlan,
    bench,
    cell,
    load,
    measure_fidelity,
    measure_memory,
    measure_time,
    plan,
    train,
)
from harness.conformance import Check, check
from harness.contracts import (
    DataInfo,
    DataSource,
    DataSplits,
    Loss,
    Method,
    ModelSource,
    Options,
    StagedModel,
    StepOutput,
    Unavailable,
    Unsupported,
    reset_states,
)
from harness.errors import UsageError
from harness.ledger import Ledger, LedgerReport
from harness.record import Record
from harness.spec import CellSpec
from harness.store import Store

__version__ = "0.1.0"

__all__ = [
    "Applied", "CellSpec", "Check", "DataInfo", "DataSource", "DataSplits", "Ledger", "LedgerReport", "LivePlan", "Loss",
    "Method",
    "ModelSource", "Options", "Record", "StagedModel", "StepOutput", "Store", "Unavailable", "Unsupported", "UsageError",
    "bench", "cell", "check", "load", "measure_fidelity", "measure_memory", "measure_time", "plan", "reset_states",
    "train",
]  # fmt: skip
