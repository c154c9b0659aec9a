"""SpikingJelly's own memory optimisation, ``memopt.optimize_memory``: a peer, wrapped as its users run it.

The library's implementation of the ICLR 2026 paper (SpikingJelly 2.0, ``activation_based/memopt``). Level 1 wraps every
stage in torch's non-reentrant checkpoint and keeps an input that was binary in **one** example batch at one bit an
element, without looking again: a later value that is neither 0 nor 1 is changed silently, in the forward already.
Level 2 cuts stages into their children, level 3 runs neurons in pieces of time, level 4 unwraps stages greedily; these
search by training on the example and reading the peak off CUDA's allocator.

Nothing of it is corrected here: what the conformance kit finds is the library's behaviour. The example is a real batch
(the library's own script passes zeros).

Stored: each checkpointed stage's input, packed or raw, its states and copies of its buffers.

Needs from the model: nothing for level 1; for levels 2 to 4 a CUDA device. A prediction cannot read values: it takes a
real run's choices, or else compresses what rules know to be spikes (:mod:`methods.widths`), level 1 only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from spikingjelly.activation_based import memopt, neuron
from spikingjelly.activation_based.memopt.checkpointing import checkpoint_module
from spikingjelly.activation_based.memopt.compress import BitSpikeCompressor
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper

from harness.contracts import Loss, Options, StagedModel
from methods.bptt import BPTT
from methods.widths import input_widths


class SJMemoptOptions(Options):
    """Options of :class:`SJMemopt`.

    Attributes:
        level: as the library numbers them; 2 to 4 need CUDA.
    """

    level: Literal[1, 2, 3, 4] = 1


class _Target:
    """Marks the stages: the library finds what it may wrap by type."""


class SJMemopt(BPTT):
    """BPTT's training loop on a model that SpikingJelly's ``optimize_memory`` has wrapped."""

    name = "sj-memopt"
    summary = "SpikingJelly's own optimize_memory: checkpointing with bit-packed inputs, levels 1-4 (a peer)"
    paper = "gradient checkpointing + spike compression, ICLR 2026; as SpikingJelly 2.0 implements it"
    gradient = "exact"
    options: ClassVar[type[SJMemoptOptions]] = SJMemoptOptions

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        self._wrapped: list[dict[str, Any]] | None = None

    def supports(self, model: StagedModel, loss: Loss) -> str | None:
        """None, or that the level needs CUDA."""
        device = next((p.device.type for p in model.parameters()), "cpu")
        if self.opt.level >= 2 and device != "cuda":
            return f"level {self.opt.level} searches by the peak of CUDA's allocator, but the model is on {device}"
        return None

    def prepare(self, model: StagedModel, example: Tensor, loss: Loss) -> StagedModel:
        """Wrap stages; state_dict keys stay as they are.

        Raises:
            ValueError: levels 2 to 4 on fake tensors without a replayed plan.
        """
        if self._wrapped is None and isinstance(example, FakeTensor):
            if self.opt.level >= 2:
                raise ValueError(
                    f"sj-memopt level {self.opt.level} measures on CUDA: its prediction needs a replayed plan"
                )
            widths = enumerate(input_widths(model.stages))
            self._wrapped = [{"module": f"stages.{i}", "packed": width == 1, "chunks": 1} for i, width in widths]
        if self._wrapped is None:
            with _marked(model):
                memopt.optimize_memory(
                    model,
                    _Target,
                    lambda current: current(example),
                    level=self.opt.level,
                    split_fn=lambda module: tuple(module.children()),
                    can_chunk=lambda module: isinstance(module, neuron.BaseNode),
                )
        else:
            for entry in self._wrapped:
                packer = BitSpikeCompressor() if entry["packed"] else None
                inside = model.get_submodule(entry["module"])
                model.set_submodule(
                    entry["module"], checkpoint_module(inside, compressor=packer, chunks=entry["chunks"])
                )
        self._wrapped = [_entry(name, module) for name, module in _wrappers(model)]
        return model

    def finish(self, model: StagedModel) -> nn.Module:
        """The model without wrappers."""
        for name, wrapper in _wrappers(model):
            model.set_submodule(name, wrapper._checkpoint_wrapped_module)
        return model

    def plan(self) -> dict[str, Any]:
        """``level``; ``wrapped``: module, whether its input is packed, pieces of time."""
        return {"level": self.opt.level, "wrapped": self._wrapped or []}

    def replay(self, plan: dict[str, Any]) -> None:
        """Take the choices of a real run."""
        self._wrapped = list(plan["wrapped"])


@contextlib.contextmanager
def _marked(model: StagedModel) -> Iterator[None]:
    """Stages are of a type of their own while active: the stages' container must not be found with them."""
    kinds = {stage: type(stage) for stage in model.stages}
    for stage, kind in kinds.items():
        stage.__class__ = type(kind.__name__, (kind, _Target), {"__module__": kind.__module__})
    try:
        yield
    finally:
        for stage, kind in kinds.items():
            stage.__class__ = kind


def _wrappers(model: nn.Module) -> list[tuple[str, Any]]:
    """Innermost last, names as ``set_submodule`` takes them."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, CheckpointWrapper)]


def _entry(name: str, wrapper: Any) -> dict[str, Any]:
    chosen = wrapper.checkpoint_fn.keywords
    return {"module": name, "packed": chosen["compressor"] is not None, "chunks": chosen["chunks"]}
