"""Gradient checkpointing with lossless spike compression (ICLR 2026, seed 000), levels O1 to O4.

As :mod:`methods.checkpoint`, but the input ``h`` of a segment is kept at ``w`` bits per element: 1 for spikes, 2, 4 or
8 for small non-negative integers (residual sums of SEW blocks), as it is otherwise. What is unpacked equals what was
packed, so the gradient is BPTT's.

* **O1**: every stage is a segment.
* **O2**: stages at the peak are cut in space (conv - norm | neuron), also inside the branches of residual and
  transformer blocks, or their neurons set apart in the recompute.
* **O3**: segments at the peak run in ``k`` pieces of time, ``k`` doubling; never one with batch normalisation.
* **O4**: segments go back to plain, the slowest first, where the peak does not rise. Forward time is **estimated** from
  FLOPs and bytes: no device measures it.

:mod:`methods._plan` decides, on fake tensors in :meth:`~CheckpointCompress.prepare` (under autocast in the first step:
only there is it known); where measured widths replace unknown ones in the first step, it decides again after it.

Widths come from the modules (:mod:`methods.widths`), for unknown modules from the first real batch, and **every pack
verifies itself** on the device: nothing is decided by one example alone. The counters are read once a step, between
forward and backward. Under ``adaptive`` a violation widens the stage and redoes the forward; the first one computed
with the true values, so running statistics and random numbers stay as it left them. Any other compressor refuses: the
step ends in a ``ValueError`` that names stage and compressor; no gradient is computed, no weight or statistic changed.

Stored: ``sum_l w_l/8 * numel(h_l)`` bytes over the values that segments read, each once: what a block's branch and its
shortcut both start from is kept once, and a sum keeps nothing. While one segment runs backward, its unpacked inputs,
what autograd saves for it, or for one piece of it, and in a block that is cut the gradient of what its shortcut starts
from; and what autograd saves for plain segments. The network's own input is neither packed nor copied.

Needs from the model: as :mod:`methods.checkpoint`; from O2 on that its stages can be copied. Of a stage that is cut,
only the parts are called, not the containers and blocks around them. A block can be cut if its forward is a graph of
calls and functions (:mod:`methods._program`); others run in one piece. Numbers and flags of a block may change between
steps, what else its forward reads may not. Under fake tensors nothing can be read: widths are the
rules', or a real run's, and an unknown one is raw.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, ClassVar, Literal

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from harness.contracts import Loss, Method, Options, StagedModel, StepOutput, reset_states
from methods import compressors
from methods._entry import Entry
from methods._layout import Part, Segment, parts, places, programs, value_bounds, whole
from methods._plan import Level, autocast_of, plan
from methods._program import Program
from methods._segment import segmented_forward, unsegmentable
from methods._twin import Autocast, Measured
from methods.compressors import ALLOWED, FIXED, Keeper, width_under
from methods.kernels.choice import triton_at
from methods.packing import RAW

_Buffer = tuple[dict[str, Tensor | None], str, Tensor, Tensor]
"""Its table, name, tensor and value."""
REPORTED = 3
"""First steps whose spike counts the plan holds: a memory phase makes three, and a prediction repeats their order."""


class CheckpointCompressOptions(Options):
    """Options of :class:`CheckpointCompress`.

    Attributes:
        level: how far to go: every stage a segment (``O1``), cut in space (``O2``), in time (``O3``), restored where
            that costs no memory (``O4``).
        compressor: how segments' inputs are kept; all but ``adaptive`` and ``raw`` refuse a step whose values they
            cannot hold.
    """

    level: Level = "O1"
    compressor: compressors.Name = "adaptive"


class CheckpointCompress(Method):
    """Keep each segment's input in as few bits as hold it, recompute the rest."""

    name = "checkpoint-compress"
    summary = "gradient checkpointing of layers and parts of them, inputs kept losslessly in few bits (levels O1-O4)"
    paper = "gradient checkpointing + spike compression, ICLR 2026"
    gradient = "exact"
    options: ClassVar[type[CheckpointCompressOptions]] = CheckpointCompressOptions

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        self._segments: list[Segment] = []
        self._bound: tuple[StagedModel, list[Program], list[Part]] | None = None
        self._widths: list[int | None] | None = None
        self._measured: Measured = {}
        self._source: Literal["rule", "measured", "replay"] = "rule"
        self._redone = 0
        self._peak: int | None = None
        self._planned_for: Autocast | None = None
        self._spikes: list[list[int | None]] = []
        self._steps = 0
        self._kernel = "torch"

    def supports(self, model: StagedModel, loss: Loss) -> str | None:
        """None, or why the model's stages cannot be recomputed one by one."""
        return unsegmentable(model)

    def prepare(self, model: StagedModel, example: Tensor, loss: Loss) -> StagedModel:
        """Find the segments and the widths that rules know; nothing is rewritten: state_dict keys stay as they are.

        Raises:
            ValueError: a replayed plan belongs to a model of another structure; or, from O2 on, a forward depends on
                values.
        """
        self._kernel = "triton" if triton_at(example.device) else "torch"
        if self._source != "replay":
            self._decide(model, example, loss)
        self._parts(model)
        return model

    def step(self, model: StagedModel, x: Tensor, y: Tensor, loss: Loss, update: Callable[[], None]) -> StepOutput:
        """See :meth:`Method.step`.

        Raises:
            ValueError: the compressor cannot hold the input of a segment.
        """
        if self._planned_for not in (None, autocast_of(x)):
            self._decide(model, x, loss)
        logits = self._logits(model, x)
        value = loss(logits, y)
        loss.backward(value)
        update()
        out = StepOutput(value.detach(), logits.detach().mean(0))
        del logits, value
        if self._steps == 1 and self._measured and self._planned_for is not None:
            reset_states(model)
            self._decide(model, x, loss)
        return out

    def plan(self) -> dict[str, Any]:
        """What was decided.

        ``level``, ``compressor``; ``segments``: stage, steps of it, pieces of time, plain or not; ``widths``: bits per
        element of what the segments read, each value once, in order (``sparse``: per spike), 0 = kept raw;
        ``width_source``: ``rule``, ``measured`` (at least one was read off a batch) or ``replay``; ``redone_steps``:
        forwards run again after a violation; ``predicted_peak_bytes``: most bytes live in a step without optimizer
        state, None at O1, which plans nothing; ``spikes``: with ``sparse``, how many each value had in the first steps;
        ``kernel``: what packs, ``torch`` or ``triton``.
        """
        return {
            "level": self.opt.level,
            "compressor": self.opt.compressor,
            "segments": [asdict(segment) for segment in self._segments],
            "widths": [RAW if width is None else width for width in self._widths or []],
            "width_source": self._source,
            "redone_steps": self._redone,
            "predicted_peak_bytes": self._peak,
            "spikes": self._spikes,
            "kernel": self._kernel,
        }

    def replay(self, plan: dict[str, Any]) -> None:
        """Take the decisions of a real run's :meth:`plan`; without ``segments`` every stage is one.

        Raises:
            ValueError: a width is not an allowed one, or a segment has an unknown field.
        """
        wrong = [width for width in plan["widths"] if width not in ALLOWED]
        if wrong:
            raise ValueError(f"the plan has widths {wrong}; allowed: {ALLOWED}")
        self._widths, self._source, self._planned_for = list(plan["widths"]), "replay", None
        self._segments = [Segment(**segment) for segment in plan.get("segments", [])]
        self._peak, self._spikes = plan.get("predicted_peak_bytes"), list(plan.get("spikes", []))
        self._bound = None

    def _decide(self, model: StagedModel, x: Tensor, loss: Loss) -> None:
        """Segments and widths; a width that was measured before stays."""
        known = programs(model.stages)
        self._segments, self._bound = whole(known), None
        if self.opt.level != "O1":
            found = plan(model, x, loss, self.opt.level, self.opt.compressor, self._measured)
            self._segments, self._peak, self._planned_for = list(found.segments), found.peak_bytes, autocast_of(x)
        bounds = value_bounds(model.stages, known)
        kept = places(parts(model, self._segments, known))
        rules = [width_under(self.opt.compressor, bounds[stage].get(number)) for stage, number in kept]
        self._widths = [self._measured.get(place, rule) for place, rule in zip(kept, rules, strict=True)]

    def _parts(self, model: StagedModel) -> list[Part]:
        """The segments with this model's modules."""
        if self._widths is None:
            raise RuntimeError("step() before prepare()")
        if self._bound is None or self._bound[0] is not model or not all(p.fresh() for p in self._bound[1]):
            known = programs(model.stages)
            self._segments = self._segments or whole(known)
            found = parts(model, self._segments, known)
            have, want = len(self._widths), len(places(found))
            if have != want:
                raise ValueError(f"the plan has {have} widths, but the model has {want} values to keep")
            self._bound = model, known, found
        return self._bound[2]

    def _logits(self, model: StagedModel, x: Tensor) -> Tensor:
        found, keeper = self._parts(model), self._keeper(x)
        start, buffers = Entry(model, x), self._buffers(model)
        logits = segmented_forward(model, x, keeper, found)
        self._note(keeper)
        # Reading the counters waits for the device, once a step; fake tensors have no values to read.
        while not isinstance(x, FakeTensor) and any(counts := keeper.violations.tolist()):
            del logits
            if self.opt.compressor != "adaptive":
                _put_back(buffers)
                raise ValueError(self._refusal(counts))
            self._widen(counts)
            keeper = self._keeper(x)
            start.settle()
            with start.again():
                logits = segmented_forward(model, x, keeper, found)
            self._note(keeper)
        self._steps += 1
        return logits

    def _keeper(self, x: Tensor) -> Keeper:
        assert self._widths is not None
        spikes = self._spikes[min(self._steps, len(self._spikes) - 1)] if self._spikes else None
        return Keeper(self.opt.compressor, self._widths, x.device, spikes)

    def _note(self, keeper: Keeper) -> None:
        """Remember what the forward read off the values."""
        kept = places(self._bound[2]) if self._bound and keeper.measured else []
        for index, width in keeper.measured.items():
            self._measured[kept[index]], self._source = width, "measured"
        if self.opt.compressor == "sparse" and self._source != "replay" and len(self._spikes) < REPORTED:
            self._spikes.append(keeper.spikes)

    def _widen(self, counts: list[int]) -> None:
        """Have the violated widths measured in the redone forward; what does not fit now gives a wider one."""
        assert self._widths is not None
        self._widths = [None if count else width for count, width in zip(counts, self._widths, strict=True)]
        self._redone += 1

    def _refusal(self, counts: list[int]) -> str:
        first = next(index for index, count in enumerate(counts) if count)
        assert self._bound is not None
        reader = next(part for part in self._bound[2] if first in part.slots)
        place, kind = reader.segment, type(reader.module).__name__
        top, _ = FIXED[self.opt.compressor]
        holds = "0 and 1" if top == 1 else f"integers from 0 to {top}"
        return (
            f"stage {place.stage}, child {place.start} ({kind}): compressor {self.opt.compressor!r} holds {holds}, but "
            f"{counts[first]} elements of the input are something else; use 'adaptive' or 'raw'; nothing was updated"
        )

    def _buffers(self, model: StagedModel) -> list[_Buffer]:
        """All buffers with their values, where the step may be refused."""
        if self.opt.compressor not in FIXED:
            return []
        tables = [module._buffers for module in model.modules()]
        return [(t, name, b, b.clone()) for t in tables for name, b in t.items() if b is not None]


def _put_back(buffers: list[_Buffer]) -> None:
    for table, name, buffer, value in buffers:
        table[name] = buffer
        buffer.copy_(value)
