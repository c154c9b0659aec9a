"""Predicted cells: the memory phase on fake tensors. No data, no arithmetic, no GPU.

The model is built for real, because initialisers such as ``trunc_normal_`` look at values, and then converted. A step
under fake tensors makes the same storages as a real one, so the ledger counts the same bytes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from harness import build
from harness.build import Bench, data_source
from harness.contracts import DataInfo, StagedModel
from harness.ledger import LedgerReport
from harness.memory import measure
from harness.record import Memory
from harness.spec import CellSpec


def predict(spec: CellSpec, plan: dict[str, object] | None = None) -> tuple[Memory, LedgerReport | None, build.Trainer]:
    """The memory block of a cell without running it.

    Args:
        spec: the cell, with ``predicted`` set.
        plan: decisions of a real run, for methods that read values while they run.
    """
    info = data_source(spec).info()
    with faking(spec, info) as bench:
        return measure(bench, plan)


@contextlib.contextmanager
def faking(spec: CellSpec, info: DataInfo) -> Iterator[Bench]:
    """A bench whose models and batch are fake, inside their mode."""
    with FakeTensorMode() as mode:
        batch = torch.empty(spec.T, spec.batch, *info.sample), torch.empty(spec.batch, dtype=torch.int64)
        yield Bench(spec, info, batch, convert=lambda model: convert(model, mode))


@unset_fake_temporarily()
def convert(model: StagedModel, mode: FakeTensorMode) -> StagedModel:
    """Replace parameters and buffers by fake ones, in place; shared ones stay shared."""
    fakes: dict[Tensor, Tensor] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if parameter not in fakes:
                    fake = mode.from_tensor(parameter.detach())
                    fakes[parameter] = nn.Parameter(fake, requires_grad=parameter.requires_grad)
                module._parameters[name] = fakes[parameter]  # type: ignore[assignment]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                if buffer not in fakes:
                    fakes[buffer] = mode.from_tensor(buffer)
                module._buffers[name] = fakes[buffer]
    return model
