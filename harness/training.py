"""Train phase: the profile's epochs, loss and accuracy after each; the final epoch counts, never the best."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from harness.build import Bench, Trainer, copy_weights, loader, make_loss, precision
from harness.contracts import reset_states
from harness.distributed.ranks import SEED_OFFSET
from harness.record import Epoch, Training
from harness.spec import Recipe


class DivergedError(Exception):
    """The loss became NaN or infinite; ``block`` holds the epochs before."""

    def __init__(self, epoch: int) -> None:
        super().__init__(f"the training loss is not finite in epoch {epoch}")
        self.block: Training | None = None


def measure(bench: Bench) -> tuple[Training, Trainer]:
    """Train from the seed's initial weights.

    Returns:
        The training block, and the trainer with the final weights.

    Raises:
        DivergedError: the loss is not finite.
        ValueError: the data was not loaded.
        RuntimeError: the ranks' weights are not the same after training.
    """
    spec, splits, ranks = bench.spec, bench.splits, bench.ranks
    if splits is None:
        raise ValueError("training needs data")
    trainer, plain = bench.trainer(), bench.plain()
    batches = loader(splits.train, spec, train=True, ranks=ranks)
    if len(batches) == 0:
        raise ValueError(f"batch {spec.batch} is larger than the training split ({_size(splits.train)} samples)")
    rate = _schedule(trainer, len(batches))
    # Dropout and augmentation draw from the same numbers for every method of a seed; each rank has its own samples.
    torch.manual_seed(spec.seed + SEED_OFFSET * ranks.rank)
    begin, epochs = time.perf_counter(), list[Epoch]()
    try:
        for number in range(1, spec.recipe.epochs + 1):
            epochs.append(_epoch(number, trainer, plain, bench, batches, rate))
    except DivergedError as error:
        error.block = _block(bench, epochs, None, time.perf_counter() - begin, len(batches))
        raise
    if len(set(ranks.gather(_parameters_sha256(trainer.model)))) > 1:
        raise RuntimeError("the ranks' weights are not the same after training: gradients were not averaged everywhere")
    return _block(bench, epochs, plain, time.perf_counter() - begin, len(batches)), trainer


def evaluate(bench: Bench, plain: nn.Module) -> tuple[float, float]:
    """Loss and accuracy of the test split; dropout off, running statistics."""
    assert bench.splits is not None
    plain.eval()
    loss, correct, seen = 0.0, 0, 0
    criterion = make_loss(bench.spec.loss)
    with torch.no_grad(), precision(bench.spec):
        for x, y in loader(bench.splits.test, bench.spec, train=False, ranks=bench.ranks):
            x, y = x.to(bench.spec.device), y.to(bench.spec.device)
            reset_states(plain)
            logits = plain(x)
            loss += float(criterion(logits, y)) * len(y)
            correct += int((logits.float().mean(0).argmax(-1) == y).sum())
            seen += len(y)
    reset_states(plain)
    loss, hits, count = bench.ranks.total(loss, correct, seen)
    return loss / count, hits / count


def weights_sha256(model: nn.Module) -> str:
    """Hash of all weights and buffers, in the order of the state_dict."""
    whole = hashlib.sha256()
    for name, value in model.state_dict().items():
        whole.update(name.encode())
        whole.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def _parameters_sha256(model: nn.Module) -> str:
    """Hash of the parameters alone: without synchronised statistics each rank has running ones of its own."""
    return weights_sha256(nn.ParameterList(model.parameters()))


def _epoch(
    number: int,
    trainer: Trainer,
    plain: nn.Module,
    bench: Bench,
    batches: Any,
    rate: torch.optim.lr_scheduler.LRScheduler,
) -> Epoch:
    begin, total, correct, seen = time.perf_counter(), 0.0, 0, 0
    for x, y in _on(bench.spec.device, batches):
        out = trainer.step(x, y)
        rate.step()
        total += float(out.loss) * len(y)
        correct += int((out.logits.argmax(-1) == y).sum())
        seen += len(y)
    seconds = time.perf_counter() - begin
    total, hits, count = bench.ranks.total(total, correct, seen)
    if not math.isfinite(total):
        raise DivergedError(number)
    copy_weights(trainer.model, plain)
    test_loss, test_accuracy = evaluate(bench, plain)
    return Epoch(
        epoch=number,
        train_loss=total / count,
        train_accuracy=hits / count,
        test_loss=test_loss,
        test_accuracy=test_accuracy,
        seconds=seconds,
    )


def lr_factor(recipe: Recipe, steps: int) -> Callable[[int], float]:
    """Learning rate at a training step, as a fraction of the recipe's.

    Args:
        recipe: its schedule. ``cosine`` falls at every step, ``multistep`` at the ends of epochs.
        steps: of an epoch.
    """

    def factor(step: int) -> float:
        warm, floor = recipe.warmup_epochs * steps, recipe.min_lr / recipe.lr
        if step < warm:
            start = recipe.warmup_lr / recipe.lr
            return start + (1 - start) * step / warm
        if recipe.schedule == "cosine":
            done = min(1.0, step / (recipe.epochs * steps))
            return floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2
        if recipe.schedule == "multistep":
            return recipe.gamma ** sum(step >= milestone * steps for milestone in recipe.milestones)
        return 1.0

    return factor


def _schedule(trainer: Trainer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """The recipe's schedule, stepped after every training step; ``steps`` of an epoch."""
    return torch.optim.lr_scheduler.LambdaLR(trainer.optimizer, lr_factor(trainer.spec.recipe, steps))


def _on(device: str, batches: Any) -> Iterator[Any]:
    for x, y in batches:
        yield x.to(device, non_blocking=True), y.to(device, non_blocking=True)


def _size(dataset: Any) -> int:
    return len(dataset)


def _block(bench: Bench, epochs: list[Epoch], plain: nn.Module | None, seconds: float, steps: int) -> Training:
    """The training block; ``plain`` is None where training diverged, and there is no final model."""
    assert bench.splits is not None
    reason = "training diverged"
    return Training(
        epochs=epochs,
        final_test_accuracy=None if plain is None else epochs[-1].test_accuracy,
        seconds=seconds,
        steps=steps * len(epochs),
        train_samples=_size(bench.splits.train),
        test_samples=_size(bench.splits.test),
        weights_sha256=None if plain is None else weights_sha256(plain),
        reasons={} if plain is not None else {"final_test_accuracy": reason, "weights_sha256": reason},
    )
