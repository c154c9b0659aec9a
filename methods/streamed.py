"""Streamed exact BPTT: packed spikes and channel statistics are kept, layers run backwards in chunks over the batch.

A convolution and a spiking neuron treat samples by themselves; only batch normalisation couples them, through a mean, a
variance and two sums a channel. So a layer ``y = W x; z = gamma (y - mean) rstd + beta; s = neuron(z)`` needs nothing
of size ``[T, N, ...]`` in floating point for its exact gradient but the incoming one. With ``g = dL/ds``, per chunk of
samples and over all ``T``::

    1. x = unpack(bits);  y = W x;  u from z;  dz = neuron's backward(g, u);  beta' += sum dz;  gamma' += sum dz xhat
    2. dy = gamma rstd (dz - beta' / m - xhat gamma' / m);  dL/dx = W^T dy (the chunk's samples);  dL/dW += dy x^T

(``m`` elements a channel; :mod:`methods.streaming.unit`). The membranes' recursion stays whole in time, so neuron kernels
fused over ``T`` survive. ``dz`` takes the memory of ``g``, ``dL/dx`` that of both where it has their shape.

Every layer runs in one of several modes: it may also keep ``y``, or ``y`` and the membranes; run the convolution of the
forward twice; recompute once, twice, or twice with the neuron's backward; in ``c`` chunks. :mod:`methods.streaming.plan`
chooses the modes with the least estimated work (FLOPs of convolutions done again, bytes moved) under the ``budget``, by
dynamic programming over bytes that the ledger counted under fake tensors, and verifies the plan by a whole step there.

Stored: ``w / 8`` bytes an element of every layer's input (1 bit for spikes, 2, 4 or 8 for residual sums), mean and
``rstd`` a channel, and what the chosen modes keep. Widths come from rules, for opaque modules from the first real
batch; **every pack of what a kernel did not make binary itself verifies itself**, a violation widens the value and
redoes the forward.

Needs from the model: as :mod:`methods.checkpoint`. Stages are taken apart by ``torch.fx``
(:mod:`methods.streaming.parse`): what is no convolution or linear layer with a fusable neuron or a normalisation, nor a
sum of two values, nor attention between spiking layers (:mod:`methods.streaming.functions`), runs as a checkpointed piece
with packed input (dropout too: its masks are drawn once for the whole batch); the plan names these pieces and says why.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, ClassVar, Literal

import torch
from pydantic import field_validator
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensor

from harness.contracts import Loss, Method, Options, StagedModel, StepOutput, Unsupported
from methods._entry import Memories
from methods._plan import autocast_of
from methods._segment import unsegmentable
from methods._twin import Autocast
from methods.kernels import lif
from methods.packing import RAW
from methods.streaming.parse import Program, parse
from methods.streaming.plan import Budget, TooSmall, plan, rule_widths
from methods.streaming.run import Kept, Plan, Widths, run
from methods.streaming.unit import Mode


class StreamedOptions(Options):
    """Options of :class:`Streamed`.

    Attributes:
        budget: what a step may hold: ``min`` for the least work within 2 % or 256 KiB of the smallest possible peak, or
            2 MiB where these are below a sixteenth of BPTT's; a part of BPTT's peak (``0.5x``); or bytes (``8GiB``).
            Counted are parameters, buffers, gradients, inputs and everything in between, not the optimizer's state.
    """

    budget: str = "min"

    @field_validator("budget", mode="before")
    @classmethod
    def _readable(cls, value: object) -> str:
        text = str(value).strip()  # a bare number is one of bytes
        Budget.of(text)
        return text.lower() if text.lower() == "min" else text


class Streamed(Method):
    """Keep bits, recompute in chunks over the batch; exact."""

    name = "streamed"
    summary = "exact BPTT from packed spikes: conv - norm - neuron layers run backwards in chunks, planned for a budget"
    paper = "-"
    gradient = "exact"
    abridged = "two chunks stand for all"
    baseline = "bptt-fused"
    options: ClassVar[type[StreamedOptions]] = StreamedOptions

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        self._bound: tuple[StagedModel, Plan] | None = None
        self._modes: tuple[Mode, ...] = ()
        self._widths: Widths | None = None
        self._source: Literal["rule", "measured", "replay"] = "rule"
        self._found: dict[str, Any] = {}
        self._planned_for: Autocast | None = None
        self._redone = 0
        self._device = torch.device("cpu")

    def supports(self, model: StagedModel, loss: Loss) -> str | None:
        """None, or why the model's stages cannot be recomputed one by one."""
        return unsegmentable(model)

    def prepare(self, model: StagedModel, example: Tensor, loss: Loss) -> StagedModel:
        """Choose how every layer runs; nothing is rewritten: state_dict keys stay as they are.

        Raises:
            Unsupported: no plan meets the budget, and the message has the smallest possible; or a forward depends on
                values.
            ValueError: a replayed plan belongs to a model of another structure.
        """
        self._device = example.device
        if self._source != "replay":
            self._decide(model, example, loss)
        self._plan(model)
        return model

    def step(self, model: StagedModel, x: Tensor, y: Tensor, loss: Loss, update: Callable[[], None]) -> StepOutput:
        """See :meth:`Method.step`.

        Raises:
            Unsupported: under the precision of this step no plan meets the budget.
        """
        if self._planned_for not in (None, autocast_of(x)):
            self._decide(model, x, loss)
        logits = self._logits(model, x)
        value = loss(logits, y)
        loss.backward(value)
        update()
        return StepOutput(value.detach(), logits.detach().mean(0))

    def plan(self) -> dict[str, Any]:
        """What was decided.

        ``budget``; ``layers``: name, kind (``unit``, ``add``, ``call``), mode of a unit, why a call is opaque;
        ``fallback``: the calls alone; ``widths``: bits an element of every value, 0 = as it is; ``width_source``:
        ``rule``, ``measured`` or ``replay``; ``redone_steps``: forwards run again after a violation;
        ``predicted_peak_bytes``: most bytes live in a step without optimizer state; ``smallest_bytes``: what they
        cannot go below; ``budget_bytes``; ``added_work``: see :meth:`added_work`; ``kernel``.
        """
        return {
            "budget": self.opt.budget,
            **self._found,
            "widths": [0 if width is None else width for width in self._widths or []],
            "width_source": self._source,
            "redone_steps": self._redone,
            "kernel": lif.kernel(self._device).NAME,
        }

    def added_work(self) -> float | None:
        """See :meth:`Method.added_work`: convolutions and neurons that run again, and launches of many chunks."""
        return self._found.get("added_work")

    def replay(self, plan: dict[str, Any]) -> None:
        """Take the decisions of a real run's :meth:`plan`."""
        self._widths, self._source, self._planned_for = list(plan["widths"]), "replay", None
        self._modes = tuple(Mode(**layer["mode"]) if layer["mode"] else Mode() for layer in plan["layers"])
        kept = ("layers", "fallback", "predicted_peak_bytes", "smallest_bytes", "budget_bytes", "added_work")
        self._found, self._bound = {key: plan[key] for key in kept if key in plan}, None

    def _decide(self, model: StagedModel, x: Tensor, loss: Loss) -> None:
        program = parse(model)
        if self._widths is None:
            self._widths = rule_widths(program)
        try:
            chosen = plan(model, x, loss, Budget.of(self.opt.budget), self._widths, autocast_of(x))
        except TooSmall as error:
            raise Unsupported(f"budget {self.opt.budget}: {error}") from error
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise Unsupported(
                "plans on fake tensors, which have no values, and a forward of this model asks for some "
                f"(.item(), float(x), if x.sum() > 0, ...: {error})"
            ) from error
        self._modes, self._planned_for, self._bound = chosen.modes, autocast_of(x), None
        self._found = {
            "layers": _described(program, chosen.modes),
            "fallback": {step.name: step.why for step in program.steps if step.kind == "call"},
            "predicted_peak_bytes": chosen.peak_bytes,
            "smallest_bytes": chosen.smallest_bytes,
            "budget_bytes": chosen.budget_bytes,
            "added_work": chosen.added,
        }

    def _plan(self, model: StagedModel) -> Plan:
        """The program of this model with the chosen modes."""
        if self._widths is None:
            raise RuntimeError("step() before prepare()")
        if self._bound is None or self._bound[0] is not model:
            program = parse(model)
            values = 1 + max((step.out for step in program.steps), default=0)
            if len(program.steps) != len(self._modes) or len(self._widths) != values:
                have, want = len(self._modes), len(program.steps)
                raise ValueError(f"the plan has {have} layers, but the model has {want}: it belongs to another model")
            self._bound = model, Plan(program, list(self._modes))
        return self._bound[1]

    def _logits(self, model: StagedModel, x: Tensor) -> Tensor:
        assert self._widths is not None
        found, enabled = self._plan(model), autocast_of(x)
        amp = enabled[1] if enabled[0] else None
        # What kernels and sums of their outputs pack is right by construction; what a module of unknown rules emits is not.
        doubtful = any(step.kind == "call" and self._widths[step.out] != RAW for step in found.program.steps)
        if not doubtful or isinstance(x, FakeTensor):
            return self._forward(model, x, found, amp)[0]
        start = _Start(model, x)
        logits, counts = self._forward(model, x, found, amp)
        # Reading the counters waits for the device, once a step.
        while any(wrong := counts.tolist()):
            del logits
            self._widths = [None if count else width for count, width in zip(wrong, self._widths, strict=True)]
            self._redone += 1
            start.restore()
            logits, counts = self._forward(model, x, found, amp)
        return logits

    def _forward(self, model: StagedModel, x: Tensor, found: Plan, amp: torch.dtype | None) -> tuple[Tensor, Tensor]:
        """Logits, and how many elements of each value its width could not hold."""
        assert self._widths is not None
        counts = torch.zeros(len(self._widths), dtype=torch.int64, device=x.device)
        kept = Kept(self._widths, counts, {})
        logits = model.head(run(found, x, kept, amp))
        if kept.measured:
            self._source = "measured"
        return logits, counts


class _Start:
    """What a forward changes, as it was before; a forward that read wrongly packed values has to be undone."""

    def __init__(self, model: StagedModel, x: Tensor) -> None:
        self._memories, self._random, self._device = Memories(model), torch.get_rng_state(), x.device
        tables = [module._buffers for module in model.modules()]
        self._buffers = [(t, name, b, b.clone()) for t in tables for name, b in t.items() if b is not None]
        device = None if x.device.type == "cpu" else torch.get_device_module(x.device)
        self._other = None if device is None else (device, device.get_rng_state(x.device))

    def restore(self) -> None:
        """Put everything back."""
        self._memories.load()
        torch.set_rng_state(self._random)
        if self._other is not None:
            self._other[0].set_rng_state(self._other[1], self._device)
        for table, name, buffer, value in self._buffers:
            table[name] = buffer
            buffer.copy_(value)


def _described(program: Program, modes: tuple[Mode, ...]) -> list[dict[str, Any]]:
    return [
        {"name": step.name, "kind": step.kind, "mode": asdict(mode) if step.kind == "unit" else None}
        for step, mode in zip(program.steps, modes, strict=True)
    ]
