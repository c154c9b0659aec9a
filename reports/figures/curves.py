"""Training curves: mean over seeds, with the t-interval as a band."""

from __future__ import annotations

import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from harness.record import Epoch
from harness.stats import Interval, t_interval
from reports.figures.base import Drawing, Scene, choose
from reports.figures.style import Mark, canvas, finish, tag
from reports.tables import Line, Table


def draw(scene: Scene) -> tuple[list[Drawing], str]:
    """A figure for each group at its largest T and batch, and a note on the rest.

    Args:
        scene: what the page has.
    """
    choice = choose(scene, lambda line: bool(_runs(line)))
    return [_one(scene, table) for table in choice.tables], choice.note


def _runs(line: Line) -> list[list[Epoch]]:
    """The epochs of every seed that has any."""
    trained = [item.record.training for item in line.row.with_block("training").values()]
    return [training.epochs for training in trained if training and training.epochs]


def _one(scene: Scene, table: Table) -> Drawing:
    figure, (loss, accuracy) = canvas(2)
    drawn = [line for line in table.lines if _runs(line)]
    for line in drawn:
        mark = Mark(scene.place(line))
        runs = _runs(line)
        _curve(loss, mark, over_epochs(runs, "train_loss"), 1)
        _curve(accuracy, mark, over_epochs(runs, "test_accuracy"), 100)
    for ax in (loss, accuracy):
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    finish(loss, "training loss", "epoch", "mean loss of the epoch")
    finish(accuracy, "test accuracy", "epoch", "%")
    return Drawing(scene.headings.title(table.group), figure, [scene.key(line) for line in drawn])


def over_epochs(runs: list[list[Epoch]], field: str) -> dict[int, Interval]:
    """Mean and interval over seeds, by epoch; runs that ended early drop out where they end.

    Args:
        runs: epochs of each seed.
        field: name of the quantity.
    """
    values: dict[int, list[float]] = {}
    for run in runs:
        for epoch in run:
            values.setdefault(epoch.epoch, []).append(getattr(epoch, field))
    return {epoch: interval for epoch, each in sorted(values.items()) if (interval := t_interval(each))}


def _curve(ax: Axes, mark: Mark, intervals: dict[int, Interval], scale: float) -> None:
    epochs, means = list(intervals), [scale * interval.mean for interval in intervals.values()]
    sns.lineplot(
        x=epochs, y=means, ax=ax, estimator=None, errorbar=None, color=mark.colour, linestyle=mark.dashes,
        gid=tag(mark.place), marker=mark.marker if len(epochs) < 12 else None, markeredgewidth=0,
    )  # fmt: skip
    banded = [(epoch, i.low, i.high) for epoch, i in intervals.items() if i.low is not None and i.high is not None]
    if len(banded) > 1:
        xs, lows, highs = zip(*banded, strict=True)
        low, high = ([scale * value for value in ends] for ends in (lows, highs))
        ax.fill_between(xs, low, high, color=mark.colour, alpha=0.15, linewidth=0, gid=tag(mark.place))
