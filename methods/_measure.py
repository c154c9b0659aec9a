"""Shapes and bytes of a part of a model, from the ledger under fake tensors: no arithmetic, no device memory.

Runs inside the fake mode that is active (a predicted cell), or in one of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from harness.contracts import Loss, StagedModel, reset_states
from harness.ledger import BLOCK, Ledger
from methods._architecture import M, Shape, copied
from methods._local import Part, layers_of, learn_part
from methods._online import detach_states
from methods._traces import Traced


@contextlib.contextmanager
def faking() -> Iterator[FakeTensorMode]:
    """The active fake mode, or a new one for the block."""
    active = detect_fake_mode()
    if active is not None:
        yield active
        return
    with FakeTensorMode() as mode:
        yield mode


def faked(module: M, mode: FakeTensorMode) -> M:
    """A copy of ``module`` with fake parameters and buffers; its states must be reset."""
    return copied(module, lambda value: value if isinstance(value, FakeTensor) else mode.from_tensor(value))


@dataclass(frozen=True)
class Setting:
    """What parts are measured under; a step in single-step mode, a sequence in multi-step mode.

    Args:
        lead: ``(N,)``, or ``(T, N)`` in multi-step mode.
        dtype: of the activations.
        device: of the activations.
        loss: the cell's objective.
        traces: what is put under the weights of a module, if anything.
    """

    lead: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    loss: Loss
    traces: Callable[[nn.Module], Traced] | None = None

    @property
    def step_mode(self) -> str:
        """SpikingJelly's step mode."""
        return "s" if len(self.lead) == 1 else "m"

    def empty(self, sample: Sequence[int], **kwargs: Any) -> Tensor:
        """A tensor for samples of a shape."""
        return torch.empty((*self.lead, *sample), dtype=self.dtype, device=self.device, **kwargs)

    @classmethod
    def of(cls, example: Tensor, loss: Loss, step_mode: str, traces: Callable[[nn.Module], Traced] | None) -> Self:
        """The setting of a batch ``[T, N, ...]``."""
        lead = example.shape[1:2] if step_mode == "s" else example.shape[:2]
        return cls(tuple(lead), example.dtype, example.device, loss, traces)


def shapes(model: StagedModel, example: Tensor, step_mode: str) -> list[Shape]:
    """Sample shape before every layer, after the last one, and of the logits ``(K,)``.

    Args:
        model: its modules in ``step_mode``, its states reset; a fake copy runs, not itself.
        example: ``[T, N, ...]``, real or fake.
        step_mode: ``"s"`` or ``"m"``.
    """
    one = (1,) if step_mode == "s" else (1, 1)
    with faking() as mode, torch.no_grad():
        fake = faked(model, mode)
        x = torch.empty((*one, *example.shape[2:]), dtype=example.dtype, device=example.device)
        found = []
        for stages in layers_of(model):
            found.append(tuple(x.shape[len(one) :]))
            x = fake.stages[stages.start : stages.stop](x)
        return [*found, tuple(x.shape[len(one) :]), tuple(fake.head(x).shape[len(one) :])]


def layer_bytes(layer: nn.Module, given: Sequence[int], setting: Setting) -> tuple[int, Shape]:
    """What a fake layer adds to a graph, without its output (bytes), and the output's sample shape."""
    x = setting.empty(given, requires_grad=True)
    with torch.no_grad():  # so that the membranes exist, as they do in all steps but the first
        layer(x)
    if setting.step_mode == "m":
        reset_states(layer)
    ledger = Ledger(layer, setting.device.type)
    ledger.register("inputs", [x])
    with ledger:
        out = layer(x)
        out.backward(out.detach())
    saved = ledger.report().saved_bytes or 0
    output = -(-out.untyped_storage().nbytes() // BLOCK) * BLOCK
    return saved - output, tuple(out.shape[len(setting.lead) :])


def activation_bytes(part: Part, given: Sequence[int], setting: Setting) -> int:
    """Peak of activations and temporaries in a settled forward and backward of a part.

    Membranes are in it, because every step makes new ones; traces are not: they live on.

    Args:
        part: the subnetwork, fake or real; left with gradients, without states.
        given: sample shape of its input.
        setting: what to measure under.
    """
    h = torch.zeros_like(setting.empty(given))
    y = torch.zeros(setting.lead[-1], dtype=torch.int64, device=setting.device)
    modules = nn.ModuleList([part.body, part.tail])
    share: Callable[[Tensor, Tensor], Tensor] = setting.loss
    if setting.step_mode == "s":
        share = partial(setting.loss.at_step, steps=1)
    with contextlib.nullcontext() if setting.traces is None else setting.traces(modules):
        for settled in (False, True):
            (reset_states if setting.step_mode == "m" else detach_states)(modules)
            ledger = Ledger(modules, setting.device.type)
            ledger.register("inputs", [h, y])
            with ledger if settled else contextlib.nullcontext():
                learn_part(part, h, y, share, setting.loss)
    reset_states(modules)
    return ledger.report().activation_bytes
