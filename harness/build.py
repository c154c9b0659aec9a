"""From a spec to live objects: model, data, objective, optimizer, and the step that trains."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from harness import registry
from harness.contracts import (
    DataInfo,
    DataSource,
    DataSplits,
    Loss,
    Method,
    StagedModel,
    StepOutput,
    Unavailable,
    Unsupported,
    reset_states,
)
from harness.distributed import norm
from harness.distributed.ranks import ALONE, Ranks
from harness.spec import CellSpec, LossSpec, Precision, Recipe

# torch says at every import that Triton is absent; `snnbench doctor` tells it once.
logging.getLogger("torch._library.triton").setLevel(logging.ERROR)
# torch logs the traceback of an operator that refuses a fake tensor's shape; the exception is told as one reason.
logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)

Batch = tuple[Tensor, Tensor]

DATA_SEED_OFFSET = 1_000_003
"""Keeps the order of the data apart from the initial weights, which draw from ``seed`` itself."""


@dataclass(frozen=True)
class Precise:
    """How a precision runs: autocast's dtype, and whether gradients need scaling."""

    autocast: torch.dtype | None
    scaled: bool = False
    tf32: bool = False


PRECISIONS: dict[Precision, Precise] = {
    "fp32": Precise(None),
    "tf32": Precise(None, tf32=True),
    "amp-bf16": Precise(torch.bfloat16),
    "amp-fp16": Precise(torch.float16, scaled=True),
}


def make_loss(spec: LossSpec) -> Loss:
    """The cell's objective."""
    if spec.criterion == "cross_entropy":
        return Loss(spec.kind, nn.CrossEntropyLoss(label_smoothing=spec.label_smoothing))
    if spec.criterion == "mse":
        return Loss(spec.kind, _one_hot_mse)
    share = spec.mse_weight if spec.criterion == "ce_mse" else spec.tet_lambda
    assert share is not None
    return Loss(spec.kind, MixedLoss(share, spec.tet_means, spec.label_smoothing))


def _one_hot_mse(logits: Tensor, target: Tensor) -> Tensor:
    return nn.functional.mse_loss(logits, nn.functional.one_hot(target, logits.shape[-1]).to(logits.dtype))


@dataclass(frozen=True)
class MixedLoss:
    """``(1 - share) CE + share MSE``; its text names all of it, as methods tell objectives apart by it.

    Args:
        share: of the mean squared error.
        means: what every logit is drawn to (TET); None: the one-hot target.
        label_smoothing: of the cross entropy.
    """

    share: float
    means: float | None = None
    label_smoothing: float = 0.0

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        """A scalar, from ``[N, K]`` and ``[N]``."""
        if self.means is None:
            distance = _one_hot_mse(logits, target)
        else:
            distance = nn.functional.mse_loss(logits, torch.full_like(logits, self.means))
        entropy = nn.functional.cross_entropy(logits, target, label_smoothing=self.label_smoothing)
        return (1 - self.share) * entropy + self.share * distance


def make_optimizer(recipe: Recipe, model: nn.Module, device: str) -> torch.optim.Optimizer:
    """The recipe's optimizer. ``foreach`` is set explicitly: torch's default differs by device, and it costs memory."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    foreach = device == "cuda"
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay, foreach=foreach
        )
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, recipe.lr, weight_decay=recipe.weight_decay, foreach=foreach)


def data_source(spec: CellSpec) -> DataSource:
    """The cell's data set."""
    return registry.create("datasets", spec.data)


def build_model(spec: CellSpec, info: DataInfo) -> StagedModel:
    """The model with the initial weights that every method of this seed starts from."""
    # A prediction's fake mode is off while the model is built: initialisers look at values.
    with unset_fake_temporarily():
        torch.manual_seed(spec.seed)
        model: StagedModel = registry.create("models", spec.model).build(info.sample, info.classes)
        return model.to(spec.device)


def build_method(spec: CellSpec, name: str | None = None) -> Method:
    """The cell's method, or the one called ``name`` with its default options."""
    ref = spec.method if name is None else registry.complete("methods", name, {}, where="baseline")
    method: Method = registry.create("methods", ref)
    return method


def collate(items: list[tuple[Tensor, Any]]) -> Batch:
    """Items ``(x [T, ...], y)`` to a batch ``(x [T, N, ...], y [N])``, contiguous."""
    return torch.stack([x for x, _ in items], dim=1), torch.as_tensor([y for _, y in items])


class Parts(torch.utils.data.Sampler[list[int]]):
    """This rank's part of every batch; a batch that has none for it is left out.

    Args:
        dataset: what is drawn from.
        batch: samples of a whole batch.
        ranks: who shares it.
        order: shuffles from its numbers; None: in the order of the data set.
    """

    def __init__(self, dataset: Any, batch: int, ranks: Ranks, order: torch.Generator | None) -> None:
        data = torch.utils.data
        each = data.SequentialSampler(dataset) if order is None else data.RandomSampler(dataset, generator=order)
        self._batches = data.BatchSampler(each, batch, drop_last=order is not None)
        self._ranks = ranks

    def __iter__(self) -> Iterator[list[int]]:
        """Indices, batch by batch."""
        return (part for batch in self._batches if (part := batch[self._ranks.part(len(batch))]))

    def __len__(self) -> int:
        """Number of whole batches."""
        return len(self._batches)


def loader(dataset: Any, spec: CellSpec, train: bool, ranks: Ranks = ALONE) -> torch.utils.data.DataLoader[Batch]:
    """Batches of a split, or a rank's parts of them; shuffled from the cell's seed when training.

    A last, smaller training batch is dropped.
    """
    order = torch.Generator().manual_seed(spec.seed + DATA_SEED_OFFSET)
    parts = Parts(dataset, spec.batch, ranks, order if train else None)
    return torch.utils.data.DataLoader(dataset, batch_sampler=parts, collate_fn=collate, generator=order)


def first_batch(splits: DataSplits, spec: CellSpec) -> Batch:
    """The training batch that fidelity, memory and time are measured on.

    Raises:
        ValueError: the training split has less than one batch.
    """
    for x, y in loader(splits.train, spec, train=True):
        return x.to(spec.device), y.to(spec.device)
    raise ValueError(f"batch {spec.batch} is larger than the training split of {spec.data.label}")


SYNTHETIC = "uniform noise in [0, 1) and random labels of the data's shape"
"""What stands in for data that are absent; an accuracy is never taken from it."""


def synthetic_batch(info: DataInfo, spec: CellSpec) -> Batch:
    """Uniform noise and random labels of the data's shape; one frame for all steps where the data are static."""
    draw = torch.Generator().manual_seed(spec.seed + DATA_SEED_OFFSET)
    x = torch.rand((1 if info.static else spec.T, spec.batch, *info.sample), generator=draw)
    if info.static:
        x = x.expand(spec.T, *x.shape[1:]).contiguous()
    return x.to(spec.device), torch.randint(info.classes, (spec.batch,), generator=draw).to(spec.device)


@contextlib.contextmanager
def precision(spec: CellSpec) -> Iterator[None]:
    """TF32 switches and autocast of the cell's precision."""
    how = PRECISIONS[spec.precision]
    torch.backends.cuda.matmul.allow_tf32 = how.tf32
    torch.backends.cudnn.allow_tf32 = how.tf32
    with torch.autocast(spec.device, dtype=how.autocast, enabled=how.autocast is not None):
        yield


class BlindScaler(torch.amp.GradScaler):
    """A gradient scaler that steps without a look at whether gradients are finite: fake ones have no values."""

    def _maybe_opt_step(self, optimizer: torch.optim.Optimizer, *_: Any, **__: Any) -> None:
        optimizer.step()


class Trainer:
    """A prepared model with its method, objective, optimizer and gradient scaler: everything one step needs.

    Args:
        spec: the cell.
        method: computes the gradients.
        model: prepared by ``method``.
        ranks: who shares the batch.
    """

    def __init__(self, spec: CellSpec, method: Method, model: StagedModel, ranks: Ranks = ALONE) -> None:
        self.spec, self.method, self.model, self.ranks = spec, method, model, ranks
        self._steps = 0
        self.loss = make_loss(spec.loss)
        self.optimizer = make_optimizer(spec.recipe, model, spec.device)
        if PRECISIONS[spec.precision].scaled:
            self.loss.scaler = (BlindScaler if spec.predicted else torch.amp.GradScaler)(spec.device)

    def step(self, x: Tensor, y: Tensor) -> StepOutput:
        """One training step: states reset, forward, backward, optimizer, gradients cleared."""
        reset_states(self.model)
        with precision(self.spec):
            out = self.method.step(self.model, x, y, self.loss, self.update)
        self._steps += 1
        return out

    def update(self) -> None:
        """Take the gradients' mean over the ranks, step the optimizer and clear the gradients."""
        self.ranks.average(self.model.parameters(), check=self._steps == 0)
        scaler, clip = self.loss.scaler, self.spec.recipe.clip_grad_norm
        if clip is not None:
            if scaler is not None:
                scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), clip, foreach=self.spec.device == "cuda")
        if scaler is None:
            self.optimizer.step()
        else:
            scaler.step(self.optimizer)
            scaler.update()
        self.optimizer.zero_grad(set_to_none=True)


@dataclass(frozen=True)
class Bench:
    """What the phases of a cell share.

    Args:
        spec: the cell.
        info: the data's shape.
        batch: the batch that is measured on.
        splits: the data, or None where it is absent or only predicted.
        convert: applied to every freshly built model; a prediction makes it fake here.
        source: gives a model with the seed's initial weights; default: the registry builds the spec's.
        ranks: who shares the batch; ``batch`` is this rank's part.
        whole: gives the batch of all ranks; default: ``batch``.
    """

    spec: CellSpec
    info: DataInfo
    batch: Batch
    splits: DataSplits | None = None
    convert: Callable[[StagedModel], StagedModel] = lambda model: model
    source: Callable[[], StagedModel] | None = None
    ranks: Ranks = ALONE
    whole: Callable[[], Batch] | None = None

    def fresh(self) -> StagedModel:
        """A model with the seed's initial weights."""
        return self.convert(build_model(self.spec, self.info) if self.source is None else self.source())

    def prepared(self, method: Method, shared: bool = True) -> StagedModel:
        """A model with the seed's initial weights, rewritten by ``method`` for training.

        Args:
            method: rewrites it.
            shared: batch normalisation takes its statistics over all ranks.

        Raises:
            Unsupported: the method cannot train it, or the device has no such precision.
        """
        if PRECISIONS[self.spec.precision].tf32 and self.spec.device == "cpu" and not self.spec.predicted:
            raise Unsupported("tf32 is a mode of CUDA devices; a CPU would compute in fp32 under that name")
        model, loss = self.fresh(), make_loss(self.spec.loss)
        if shared and self.ranks.size > 1:
            norm.synchronise(model)
        reason = method.supports(model, loss)
        if reason is not None:
            raise Unsupported(reason)
        return method.prepare(model.train(), self.batch[0], loss)

    def trainer(self, method: Method | None = None) -> Trainer:
        """A fresh trainer with the seed's initial weights."""
        method = method or build_method(self.spec)
        return Trainer(self.spec, method, self.prepared(method), self.ranks)

    def plain(self) -> nn.Module:
        """The model that BPTT would train and that is evaluated, in multi-step mode.

        For a method that leaves the model the same, that is the model as built: nothing the method did to it may show.
        For one that changes it, prepared and finished.
        """
        method = build_method(self.spec)
        if method.model == "same":
            return self.fresh()
        return method.finish(self.prepared(method, shared=False))


def open_bench(spec: CellSpec, ranks: Ranks = ALONE) -> tuple[Bench, dict[str, Any]]:
    """The bench on real data, or on declared synthetic input where the data is absent; and what a record says of it.

    Raises:
        ValueError: the cell needs more processes than there are.
    """
    if spec.devices != ranks.size:
        raise ValueError(f"a cell of {spec.devices} devices needs a process for each; here are {ranks.size}")
    source = data_source(spec)
    info = source.info()
    try:
        splits = source.load(spec.T)
    except Unavailable as error:
        facts = {"synthetic": True, "input": SYNTHETIC, "reason": str(error), "sha256": None}
        return _bench(spec, info, lambda: synthetic_batch(info, spec), None, ranks), facts
    facts = {"synthetic": False, "sha256": splits.sha256, **splits.details}
    # What the description knows (a subset) and what only the files tell (other checksums) are both reasons.
    reasons = [reason for reason in (info.variant, splits.details.get("variant")) if reason]
    facts["variant"] = "; ".join(dict.fromkeys(reasons)) or None
    return _bench(spec, info, lambda: first_batch(splits, spec), splits, ranks), facts


def _bench(
    spec: CellSpec, info: DataInfo, whole: Callable[[], Batch], splits: DataSplits | None, ranks: Ranks
) -> Bench:
    return Bench(spec, info, ranks.share(whole()), splits, ranks=ranks, whole=whole)


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Load ``source``'s weights into ``target``, which may lack ``source``'s auxiliaries.

    Raises:
        RuntimeError: ``target`` has keys that ``source`` lacks: the method changed the state_dict's keys.
    """
    state = source.state_dict()
    wanted = target.state_dict().keys()
    target.load_state_dict({key: value for key, value in state.items() if key in wanted}, strict=True)
