"""Published ratios as lines in figures of our own: what a paper claims, over the range that it does not name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

from matplotlib.axes import Axes

from reports.claims.loading import Claim, load
from reports.claims.matching import is_plugin
from reports.figures.style import MUTED
from reports.tables import Line

BOUND = {"up_to": "up to ", "at_least": "at least ", "about": ""}


@dataclass(frozen=True)
class Published:
    """A ratio that a paper claims.

    Args:
        value: baseline's bytes / method's.
        text: what it is and where it stands.
    """

    value: float
    text: str


def of_ratio(lines: Iterable[Line], metric: str) -> list[Published]:
    """The claims of a metric that some line is about, each once; conditions that run along the axis do not count.

    Args:
        lines: of one figure.
        metric: ``memory_less`` or ``node_memory_less``.
    """
    held = list(lines)
    claims = [claim for claim in _claims() if claim.entry.metric == metric]
    return [_published(claim) for claim in claims if any(_about(claim, line) for line in held)]


def draw(ax: Axes, published: Iterable[Published]) -> None:
    """A dotted line for each, with its words on it.

    Args:
        ax: a panel of ratios.
        published: what to draw.
    """
    for each in published:
        ax.axhline(each.value, color=MUTED, linewidth=1, linestyle=(0, (1.2, 2)), zorder=1)
        ax.text(0.01, each.value, each.text, transform=ax.get_yaxis_transform(), fontsize=7.5, va="bottom", color=MUTED)


@cache
def _claims() -> tuple[Claim, ...]:
    return tuple(load())


def _published(claim: Claim) -> Published:
    entry = claim.entry
    mark = ", not comparable" if entry.not_comparable else ""
    words = f"published: {BOUND[entry.bound]}{entry.value:g}\u00d7 ({claim.paper.name}, {entry.provenance}{mark})"
    return Published(entry.value, words)


def _about(claim: Claim, line: Line) -> bool:
    return all(_conditions(claim, line))


def _conditions(claim: Claim, line: Line) -> Iterator[bool]:
    """Method, baseline, network and size of the input; T and batch may be others."""
    spec, setting, base = line.row.spec, claim.setting, claim.entry.baseline
    yield is_plugin(spec.method, claim.entry.method)
    yield base is not None and spec.baseline == base.name
    yield setting.model is None or is_plugin(spec.model, setting.model)
    if setting.data is not None:
        sample = spec.data.options.get("sample")
        yield sample == setting.data.sample if sample is not None else spec.data.name == setting.data.name
