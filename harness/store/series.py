"""Long series: thinned for the record, kept in full in a Parquet file beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

LIMIT = 2_000
"""Most points of a series that a record holds."""


def thin(points: Sequence[Any], limit: int = LIMIT) -> list[Any]:
    """At most ``limit`` of the points, none changed, extremes never lost.

    The first and the last point stay; between them each of equally long stretches gives its lowest and its highest.

    Args:
        points: numbers, or ``(x, y)`` pairs that are judged by ``y``.
        limit: at least 4.

    Returns:
        The kept points in their order; all of them where there are no more than ``limit``.

    Raises:
        ValueError: ``limit`` is below 4.
    """
    if limit < 4:
        raise ValueError(f"limit is {limit}, needs at least 4: first, last, lowest, highest")
    if len(points) <= limit:
        return list(points)
    heights = [p[-1] if isinstance(p, tuple | list) else p for p in points]
    stretches, last = (limit - 2) // 2, len(points) - 1
    kept = {0, last}
    for i in range(stretches):
        stretch = range(1 + i * (last - 1) // stretches, 1 + (i + 1) * (last - 1) // stretches)
        real = [j for j in stretch if heights[j] == heights[j]] or stretch  # NaN compares with nothing
        kept.add(min(real, key=heights.__getitem__))
        kept.add(max(real, key=heights.__getitem__))
    return [points[i] for i in sorted(kept)]


def write_series(path: Path, series: dict[str, list[Any]]) -> None:
    """One row, one list column per series; lengths may differ.

    Args:
        path: the Parquet file, overwritten.
        series: numbers, or pairs of numbers, by name.

    Raises:
        ValueError: a series mixes types that have no common one, or a number has more than 64 bits.
    """
    try:
        table = pa.table({name: [list(points)] for name, points in series.items()})
    except (pa.ArrowException, OverflowError) as error:
        raise ValueError(f"series {', '.join(series)}: {error}") from None
    pq.write_table(table, path, compression="zstd", write_page_checksum=True)


def read_series(path: Path) -> dict[str, list[Any]]:
    """The series of :func:`write_series`; pairs come back as lists.

    Raises:
        OSError: no such file, or it is no Parquet file, or a page's checksum is wrong.
    """
    try:
        row = pq.ParquetFile(path, page_checksum_verification=True).read().to_pylist()
    except pa.ArrowException as error:
        raise OSError(f"{path}: {error}") from None
    return dict(row[0]) if row else {}
