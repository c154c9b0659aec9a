"""What the fork server imports, once, so that no cell has to: torch, SpikingJelly and every plugin.

Imports only. A convolution or matrix product here would start OpenMP threads, and the children would hang.
"""

import gc
import importlib
import signal
from contextlib import suppress

if signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()):
    # This is the server, in which Ctrl-C is blocked; an import that starts a resource tracker would unblock it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

from harness import worker

LATE = ("torch._dynamo", "sklearn.datasets")
"""What torch (at the first optimizer) and data sets import when used: 1 s and 2 s that every cell would pay."""

worker.preload()
for _name in LATE:
    with suppress(ImportError):
        importlib.import_module(_name)
# a cell's collections pass over what was imported here: 0.4 s each otherwise, and a private copy of every page
gc.collect()
gc.freeze()
