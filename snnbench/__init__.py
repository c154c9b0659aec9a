"""snnbench: what does each way of training a spiking neural network really cost?

The public API, for users and plugin authors. A plugin needs the contracts only.

>>> import snnbench
>>> spec = snnbench.cell("checkpoint", "convnet", "digits", T=4, batch=16, predicted=True)
>>> snnbench.measure_memory(spec).peak_live_bytes > 0
True
"""

from harness.api import cell, load, measure_fidelity, measure_memory, measure_time, train
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
    "CellSpec", "Check", "DataInfo", "DataSource", "DataSplits", "Ledger", "LedgerReport", "Loss", "Method",
    "ModelSource", "Options", "Record", "StagedModel", "StepOutput", "Store", "Unavailable", "Unsupported", "UsageError",
    "cell", "check", "load", "measure_fidelity", "measure_memory", "measure_time", "reset_states", "train",
]  # fmt: skip
