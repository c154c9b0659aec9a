"""What a run predicts, what it measures and on what, and what it leaves out: the first lines that a person reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness import registry
from harness.contracts import DataSource, Unavailable
from harness.errors import UsageError
from harness.executors.devices import cuda_present
from harness.run.todo import Selection
from harness.spec import CellSpec, Ref

DEVICES = {"cpu": "on the CPU", "cuda": "on the GPU"}


def first_lines(selections: Sequence[Selection]) -> list[str]:
    """One line for what is predicted and what is measured in each profile, then data and what is left out.

    Args:
        selections: the profiles of one suite that are to run.
    """
    lines = [line for selection in selections for line in _profile(selection)]
    lines += [line for selection in selections for line in _data(selection.todo)]
    left = _left_out(selections)
    return [*lines, f"left out: {left}"] if left else lines


def _profile(selection: Selection) -> Iterator[str]:
    name = f"{selection.suite.name}, profile {selection.profile}"
    done = {cell for cell in selection.finished if cell not in {spec.hash for spec in selection.todo}}
    predicted = [cell for cell in selection.cells if cell.predicted]
    measured = [cell for cell in selection.cells if not cell.predicted]
    if predicted:
        yield f"{name}: predicted: {_count(predicted, done)}: nothing is run, no data and no GPU are needed"
    if measured:
        substitute = selection.sizes.substitute
        note = f"; reduced: {substitute}" if substitute else ""
        where = ", ".join(DEVICES[device] for device in sorted({cell.device for cell in measured}))
        yield f"{name}: measured {where}: {_count(measured, done)}{note}"


def _count(cells: Sequence[CellSpec], done: set[str]) -> str:
    finished = sum(cell.hash in done for cell in cells)
    return f"{len(cells)} cells" + (f" ({finished} finished before)" if finished else "")


def _data(todo: Sequence[CellSpec]) -> Iterator[str]:
    """Data sets of the cells to measure that are not here as published, each once."""
    for name, ref in {cell.data.name: cell.data for cell in todo if not cell.predicted}.items():
        state, detail = _state(ref)
        if state == "variant":
            yield f"data {name}: a variant: {detail}"
        elif state not in ("embedded", "present"):
            yield f"data {name}: {state}: declared synthetic input in its place, no accuracy ({detail})"


def _state(ref: Ref) -> tuple[str, str]:
    try:
        source: DataSource = registry.create("datasets", ref)
        status = source.status()
    except (Unavailable, UsageError) as error:
        return "unavailable", str(error)
    return status.state, status.detail


def _left_out(selections: Sequence[Selection]) -> str:
    asked = {selection.profile for selection in selections}
    others = {name: sizes for name, sizes in selections[0].suite.profiles.items() if name not in asked}
    if not others:
        return ""
    cuda = cuda_present() if any(sizes.device == "cuda" for sizes in others.values()) else True
    return "; ".join(
        f"profile {name} ({'no CUDA device here' if sizes.device == 'cuda' and not cuda else 'not asked for'})"
        for name, sizes in others.items()
    )
