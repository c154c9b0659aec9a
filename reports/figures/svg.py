"""From a matplotlib figure to SVG that can stand inside the page many times over."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from html import escape

from matplotlib.figure import Figure

from reports.figures.style import COLOURS, SERIES_PREFIX, THEME

_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))
_NUMBER = re.compile(r"-?\d+\.\d{2,}")
_GEOMETRY = re.compile(r'\b(?:d|x|y|transform|width|height|points|viewBox)="[^"]*"')
_SERIES_GROUP = re.compile(r'<g id="series-(\d+)">')
_TIP_GROUP = re.compile(r'<g id="tip-([0-9-]+)">')


def inline(figure: Figure, prefix: str, description: str, tips: Mapping[str, str] | None = None) -> str:
    """The figure as an ``<svg>`` element without ids of its own beyond ``prefix``, colours from CSS variables.

    Args:
        figure: drawn within :func:`reports.figures.style.styled`.
        prefix: unique on the page; put before every id.
        description: what the figure shows, for readers who cannot see it.
        tips: texts that appear at the marks whose group id is ``tip-KEY``.
    """
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata=_NO_METADATA)
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = _TIP_GROUP.sub(lambda m: _tipped(m[1], tips or {}), svg)
    svg = _SERIES_GROUP.sub(r'<g class="s\1">', svg)
    return _squeeze(_colour(_fonts(_own_ids(_head(svg, description), prefix))))


def _head(svg: str, description: str) -> str:
    """Replace the root element's attributes: it scales down with the page, and readers hear what it is."""
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert box is not None, "matplotlib writes a viewBox"
    # Matplotlib counts 72 points to the inch; the page shows 100 pixels to the inch.
    width = float(box[1]) * 100 / 72
    label = escape(description, quote=True)
    root = f'<svg viewBox="0 0 {box[1]} {box[2]}" style="width:{width:.0f}px" role="img" aria-label="{label}">'
    return re.sub(r"<svg[^>]*>", lambda _: root, svg, count=1)


def _own_ids(svg: str, prefix: str) -> str:
    """Keep only ids that something refers to, and prefix those."""
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))

    def keep(match: re.Match[str]) -> str:
        return f' id="{prefix}{match[1]}"' if match[1] in used else ""

    svg = re.sub(r'\sid="([^"]*)"', keep, svg)
    svg = re.sub(r'xlink:href="#', f'href="#{prefix}', svg)
    return re.sub(r"url\(#", f"url(#{prefix}", svg)


def _colour(svg: str) -> str:
    for stand_in, variable in THEME.items():
        svg = svg.replace(stand_in, f"var({variable})")
    return re.sub(SERIES_PREFIX + r"([0-9a-f]{2})", lambda m: f"var(--c{int(m[1], 16) % COLOURS})", svg)


def _fonts(svg: str) -> str:
    """The page's own font in place of matplotlib's list."""
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    return re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)


def _squeeze(svg: str) -> str:
    """One decimal (a seventh of a pixel) is enough for coordinates; no line breaks, no default styles."""

    def rounded(match: re.Match[str]) -> str:
        return _NUMBER.sub(lambda n: f"{float(n[0]):.1f}", match[0])

    svg = _GEOMETRY.sub(rounded, svg)
    svg = re.sub(r"rotate\(-?0(?: [^)]*)?\)", "", svg).replace(' transform=""', "")
    return re.sub(r">\s+<", "><", re.sub(r"\s+", " ", svg)).strip()


def _tipped(key: str, tips: Mapping[str, str]) -> str:
    """A group with a tooltip; ``tip-PLACE-NUMBER`` also belongs to the series of that place."""
    return f'<g class="s{key.split("-")[0]}"><title>{escape(tips[key])}</title>'
