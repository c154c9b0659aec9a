"""The one page a plugin author reads: what a method, a model and a data set have to offer.

A plugin imports this module (and, where it plans, :mod:`harness.ledger`) and nothing else of the harness. It registers
through the entry-point groups ``snnbench.methods``, ``snnbench.models`` and ``snnbench.datasets``; the built-in
plugins use the same way.

Shapes: ``T`` time steps, ``N`` batch, ``K`` classes. Sequences are time-first: input ``[T, N, ...]``, logits
``[T, N, K]``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict
from spikingjelly.activation_based import base
from torch import Tensor, nn

Gradient = Literal["exact", "biased"]
Numerics = Literal["same", "reduced"]
LossKind = Literal["per_step", "time_mean"]
DataState = Literal["embedded", "present", "variant", "missing", "damaged"]
Normalisation = Literal["over_time", "per_step", "weight_standardised", "none"]
"""How a model normalises: batch statistics over T x N, per time step, on the weights, or not at all.
It is part of the model's identity; numbers of different modes never share an unmarked ratio."""


class Options(BaseModel):
    """Base of a plugin's options: unknown keys are refused, defaults are part of a cell's identity."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Unavailable(Exception):
    """Data or an optional dependency is absent.

    Args:
        what: what is missing.
        remedy: what the user can do about it (the file to place, the package to install).
    """

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what}; {remedy}")
        self.what, self.remedy = what, remedy


class Unsupported(Exception):
    """A method cannot train this cell; the message is the reason.

    ``supports`` is the place to say so. A method raises this from ``prepare`` or ``step`` where only the input can
    tell.
    """


class StagedModel(nn.Module):
    """A spiking network as an ordered list of layer-like stages and a read-out.

    A stage is what checkpointing wraps, local learning partitions and streaming rewrites: weight - norm - neuron, a
    pooling layer, or a whole residual or transformer block. Every module follows SpikingJelly's ``step_mode``; models
    are built in multi-step mode (``"m"``).

    Args:
        stages: modules applied in order, ``[T, N, ...] -> [T, N, ...]``.
        head: the read-out, ``[T, N, ...] -> [T, N, K]``.
        normalisation: the model's normalisation mode.
    """

    def __init__(self, stages: Iterable[nn.Module], head: nn.Module, normalisation: Normalisation) -> None:
        super().__init__()
        self.stages = nn.Sequential(*stages)
        self.head = head
        self.normalisation = normalisation

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[T, N, K]`` of an input ``[T, N, ...]`` (without ``T`` in single-step mode)."""
        return self.head(self.stages(x))


def reset_states(model: nn.Module) -> None:
    """Put every stateful module (membranes, dropout masks) back to its initial state.

    SpikingJelly's ``reset_net`` caches the module list by model, which goes stale when a method rewrites the model.
    """
    for module in model.modules():
        if isinstance(module, base.MemoryModule):
            module.reset()


SpikeListener = Callable[[Tensor, int], None]
"""Takes what a neuron layer emitted for some samples of the batch, ``[T, n, ...]``, and the number of the first."""


def listener(neuron: nn.Module) -> SpikeListener | None:
    """Who records what a neuron layer emits in this forward, or None, as in nearly every step.

    Records of spikes come from the outputs of modules. A method that runs a neuron without calling its module hands its
    spikes over itself, from the forward (never from a recomputation), whole or in chunks over the batch::

        if (tell := listener(node)) is not None:
            tell(spikes, 0)
    """
    return vars(neuron).get("_spike_listener")


def listen(neuron: nn.Module, to: SpikeListener | None) -> None:
    """Set, or with None remove, the one whom :func:`listener` finds."""
    vars(neuron).pop("_spike_listener", None)
    if to is not None:
        vars(neuron)["_spike_listener"] = to


class Loss:
    """The objective of a cell, and the only way a method reaches the harness's gradient scaler.

    ``per_step`` is the mean over ``t`` of ``criterion(o[t], y)``; ``time_mean`` is ``criterion(mean_t o[t], y)``.
    """

    def __init__(self, kind: LossKind, criterion: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.kind = kind
        self.criterion = criterion
        self.scaler: torch.amp.GradScaler | None = None
        self.on_logits: Callable[[Tensor], None] | None = None

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        """Loss (a scalar) of the logits of all steps, ``[T, N, K]``, and the targets ``[N]``."""
        self._observe(logits)
        logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
        if self.kind == "time_mean":
            return self.criterion(logits.mean(0), target)
        steps = logits.shape[0]
        return self.criterion(logits.flatten(0, 1), target.repeat(steps, *[1] * (target.dim() - 1)))

    def at_step(self, logits: Tensor, target: Tensor, steps: int) -> Tensor:
        """One time step's share ``criterion(o[t], y) / T``; the shares of all steps add up to :meth:`__call__`.

        Args:
            logits: ``[N, K]`` of one step.
            target: ``[N]``.
            steps: ``T``.

        Raises:
            ValueError: the loss is ``time_mean``, which has no per-step shares.
        """
        if self.kind != "per_step":
            raise ValueError("a time_mean loss has no per-step shares: it needs all logits at once")
        self._observe(logits)
        logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
        return self.criterion(logits, target) / steps

    def backward(self, value: Tensor) -> None:
        """Accumulate gradients of ``value``, scaled by the harness's GradScaler where the precision needs one.

        Outside autocast, as torch asks for: the backward's operators take the dtypes of the forward's.
        """
        device = value.device.type
        with torch.autocast(device, enabled=False):
            (value if self.scaler is None else self.scaler.scale(value)).backward()

    def _observe(self, logits: Tensor) -> None:
        if self.on_logits is not None:
            self.on_logits(logits)


@dataclass(frozen=True)
class StepOutput:
    """What one training step returns.

    Args:
        loss: the unscaled loss, a detached scalar.
        logits: mean over time of the logits, ``[N, K]``, detached.
    """

    loss: Tensor
    logits: Tensor


class Method(ABC):
    """One way to compute a training step's gradients.

    A subclass fills in the class attributes and :meth:`step`; an instance belongs to one model in one process.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str]
    """Where the method was published, or ``"-"``."""
    gradient: ClassVar[Gradient]
    """``exact``: equal to BPTT of the prepared model up to rounding; ``biased``: not."""
    model: ClassVar[str] = "same"
    """``same``, or ``changed: what``."""
    numerics: ClassVar[Numerics] = "same"
    flat_in_time: ClassVar[bool] = False
    """True where saved bytes do not depend on ``T``; the conformance kit holds the method to it."""
    ledger: ClassVar[str | None] = None
    """None, or why the ledger cannot count the method's step: watching its operators would change what runs. Memory is
    then left to the allocators, and not predicted; operators are not counted either."""
    abridged: ClassVar[str | None] = None
    """None, or what the method's step leaves out under fake tensors, where its bytes are a real step's all the same: its
    work cannot be counted there, and :meth:`added_work` may tell an estimate."""
    baseline: ClassVar[str] = "bptt"
    """The method with the same neuron kernel that ratios are taken against."""
    reconstruction: ClassVar[bool] = False
    """True where the paper's own equations are not available and this is our reading of it."""
    options: ClassVar[type[Options]] = Options

    def __init__(self, options: Options | None = None) -> None:
        self.opt: Any = self.options() if options is None else options

    def supports(self, model: StagedModel, loss: Loss) -> str | None:
        """None, or the reason why this method cannot train ``model`` under ``loss``."""
        return None

    def prepare(self, model: StagedModel, example: Tensor, loss: Loss) -> StagedModel:
        """Rewrite ``model`` for training (in place or not); timed as plan time.

        Args:
            model: a freshly built model in multi-step mode.
            example: one input batch ``[T, N, ...]``; a fake tensor in a predicted cell.
            loss: the objective.
        """
        return model

    @abstractmethod
    def step(self, model: StagedModel, x: Tensor, y: Tensor, loss: Loss, update: Callable[[], None]) -> StepOutput:
        """Forward and backward of one batch.

        The model's states are reset and its gradients are None on entry. Gradients go through ``loss.backward``;
        ``update()`` is called when they are ready: once, or at every time step for per-step rules. It steps the
        harness's optimizer and clears the gradients.
        """

    def finish(self, model: StagedModel) -> nn.Module:
        """The plain multi-step model for evaluation: auxiliaries dropped, state_dict keys as built."""
        return model

    def plan(self) -> dict[str, Any]:
        """What this instance decided while it prepared and ran (widths, segments), as JSON; stored in the record."""
        return {}

    def added_work(self) -> float | None:
        """Estimated work of a prepared step beyond that of :attr:`baseline`, or None where there is no estimate.

        In bytes that could be moved meanwhile (:mod:`harness.plan.work`). ``snnbench plan`` asks a
        method that is :attr:`abridged`; of others it counts the operators.
        """
        return None

    def replay(self, plan: dict[str, Any]) -> None:
        """Take the decisions of a real run's :meth:`plan`, where values cannot be read (fake tensors)."""
        del plan


@dataclass(frozen=True)
class DataInfo:
    """Shape of a data set, known without reading it.

    Args:
        sample: shape of one time step of one sample, e.g. ``(C, H, W)``.
        classes: number of classes ``K``.
        source: where the data comes from.
        variant: why these files are not the published benchmark, or None.
        static: True where one frame is repeated over ``T``.
    """

    sample: tuple[int, ...]
    classes: int
    source: str
    variant: str | None = None
    static: bool = False


@dataclass(frozen=True)
class DataSplits:
    """Training and test data; items are ``(x [T, ...], y)``.

    Args:
        train: map-style data set; may draw random augmentation from torch's global generator.
        test: map-style data set without randomness.
        sha256: hash of the content that both splits were made from.
        details: further facts for the record (sizes, cache, checksums); ``variant``: why the files that were found are
            not the published benchmark, where :meth:`DataSource.info` cannot know it.
    """

    train: torch.utils.data.Dataset[tuple[Tensor, Any]]
    test: torch.utils.data.Dataset[tuple[Tensor, Any]]
    sha256: str
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DataStatus:
    """Whether a data set's files are here and what is known about them.

    Args:
        state: ``embedded``: comes with the installation or is generated; ``present``: as published, verified as far as
            there are checksums; ``variant``: usable, but not the published files; ``missing``; ``damaged``: files are
            here, but differ from what they should be.
        detail: why, and for a set that is not here which file goes where.
        where: the file or folder, or None for an embedded set.
        size: bytes on disk, or None.
    """

    state: DataState
    detail: str
    where: str | None = None
    size: int | None = None


class DataSource(ABC):
    """A data set. Files are read in :meth:`prepare`, :meth:`load`, :meth:`status` and :meth:`fetch` only."""

    name: ClassVar[str]
    summary: ClassVar[str]
    options: ClassVar[type[Options]] = Options

    def __init__(self, options: Options | None = None) -> None:
        self.opt: Any = self.options() if options is None else options

    @abstractmethod
    def info(self) -> DataInfo:
        """The data's shape; no file is read."""

    def prepare(self, steps: int) -> None:
        """Make or check what is cached on disk; called once before the cells that need it.

        Raises:
            Unavailable: files are missing.
        """
        del steps

    @abstractmethod
    def load(self, steps: int) -> DataSplits:
        """Both splits at ``T = steps``.

        Raises:
            Unavailable: files are missing or damaged.
        """

    def status(self) -> DataStatus:
        """Whether the files are here; nothing is downloaded or changed."""
        return DataStatus("embedded", "comes with the installation")

    def fetch(self) -> None:  # noqa: B027  most sets have nothing to fetch
        """Download what is missing, verify and unpack it, with progress on standard error.

        Raises:
            Unavailable: it cannot be had from here; the message says which file from where goes into which folder.
        """


class ModelSource(ABC):
    """A family of models, built for an input shape and a number of classes."""

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    options: ClassVar[type[Options]] = Options

    def __init__(self, options: Options | None = None) -> None:
        self.opt: Any = self.options() if options is None else options

    @abstractmethod
    def build(self, sample: tuple[int, ...], classes: int) -> StagedModel:
        """A freshly initialised multi-step model; initial weights come from torch's global generator.

        Args:
            sample: shape of one time step of one sample, e.g. ``(C, H, W)``.
            classes: ``K``.

        Raises:
            ValueError: the input is too small for the network's pooling.
        """
