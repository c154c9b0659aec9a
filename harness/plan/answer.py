"""The answer of a plan: rows in order, the slow-downs, and the one line that is recommended, with the reason."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from harness import registry
from harness.plan.candidates import BASELINE, Row
from harness.plan.evidence import NOTHING, Evidence
from harness.plan.hardware import DEFAULT, Hardware
from harness.plan.size import Budget, show_size
from harness.spec import CellSpec

COLUMNS = (
    "", "method", "gradient", "peak", "activations", "slow-down", "fits", "largest N", "largest T", "remarks",
)  # fmt: skip
MARK = "->"
"""Before the recommended line."""
NONE = "-"


@dataclass(frozen=True)
class Answer:
    """What a plan found.

    Args:
        spec: model, data and sizes.
        budget: what the user has; None: nothing was said, and everything fits.
        rows: one a method, as evaluated.
        reference: BPTT's own row, which slow-downs are against.
        evidence: what a store holds on the subject.
        remarks: on the model, e.g. how it was cut into stages.
        hardware: what estimates are weighed as; None: nothing was said, and it is the default.
    """

    spec: CellSpec
    budget: Budget | None
    rows: Sequence[Row]
    reference: Row | None
    evidence: Evidence = NOTHING
    remarks: tuple[str, ...] = field(default=())
    hardware: Hardware | None = None

    def fits(self, row: Row) -> bool:
        """Whether a method's peak is within what the budget leaves for tensors."""
        return row.cost is not None and (self.budget is None or row.cost.peak_bytes <= self.budget.available_bytes)

    def slow_down(self, row: Row) -> tuple[float, str] | None:
        """Step time over BPTT's, and how it is known: ``estimated``, or ``measured`` with the number of records."""
        measured = self.evidence.ratio(row.method)
        if measured is not None:
            return measured[0], f"measured, {measured[1]} record{'s' if measured[1] != 1 else ''}"
        if row.cost is None or self.reference is None or self.reference.cost is None:
            return None
        if row.cost.work is None or self.reference.cost.work is None:
            return None
        return row.cost.work / self.reference.cost.work, "estimated"

    def ordered(self) -> list[Row]:
        """What fits first; then exact before changed models before biased; then by slow-down; what failed last."""
        return sorted(self.rows, key=self._rank)

    @property
    def recommended(self) -> Row | None:
        """The recommended method, or None where none can be."""
        return self._recommendation()[0]

    @property
    def why(self) -> str:
        """The reason for the recommendation, or what to do where there is none."""
        return self._recommendation()[1]

    def row(self, method: str) -> Row:
        """The row of a method by name or label.

        Raises:
            KeyError: none has this name.
        """
        return next(row for row in self._named(method))

    def table(self) -> list[list[str]]:
        """Cells of :data:`COLUMNS`, the sorted answer."""
        return [self._cells(row) for row in self.ordered() if row.cost is not None]

    def left_out(self) -> list[str]:
        """Methods without a prediction, by reason."""
        reasons: dict[str, list[str]] = {}
        for row in self.ordered():
            if row.cost is None:
                reasons.setdefault(row.reason or "", []).append(row.label)
        return [f"left out: {', '.join(labels)}: {reason}" for reason, labels in reasons.items()]

    def lines(self) -> list[str]:
        """What surrounds the table."""
        spec = self.spec
        size = f"T={spec.T} N={spec.batch} {spec.precision} {spec.recipe.optimizer} {spec.loss.kind}"
        model, data = registry.short_label("models", spec.model), registry.short_label("datasets", spec.data)
        head = [f"{model} on {data}, {size}"]
        if self.budget is not None:
            kept = "the process itself" if self._weighed.device == "cpu" else "CUDA context"
            head.append(
                f"budget {show_size(self.budget.total_bytes)}, of which {show_size(self.budget.reserve_bytes)} are kept "
                f"for {kept}, workspaces and fragmentation: {show_size(self.budget.available_bytes)} for tensors"
            )
        default = ", the default" if self.hardware is None else ""
        head.append(f"estimated slow-downs weighed as {self._weighed.described(spec.precision)}{default}")
        return [*head, *self.remarks]

    def __str__(self) -> str:
        table = [list(COLUMNS), *self.table()]
        widths = [max(len(row[i]) for row in table) for i in range(len(COLUMNS))]
        rows = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
        return "\n".join([*self.lines(), *rows, *self.left_out(), self.why])

    @property
    def _weighed(self) -> Hardware:
        return self.hardware or DEFAULT

    def _named(self, method: str) -> Iterable[Row]:
        found = [row for row in self.rows if method in (row.label, row.method.name)]
        if not found:
            names = ", ".join(sorted({row.label for row in self.rows}))
            raise KeyError(f"no row for {method!r}; there are {names}")
        return found

    def _rank(self, row: Row) -> tuple[bool, bool, int, float, int, str]:
        slow = self.slow_down(row)
        sort = {"exact": 0, "exact, changed model": 1}.get(row.kind, 2)
        peak = row.cost.peak_bytes if row.cost else 0
        return row.cost is None, not self.fits(row), sort, slow[0] if slow else math.inf, peak, row.label

    def _recommendation(self) -> tuple[Row | None, str]:
        fitting = [row for row in self.ordered() if self.fits(row)]
        exact = [row for row in fitting if row.kind == "exact" and row.numerics == "same"]
        proven = [row for row in fitting if row.gradient == "biased" and self.evidence.as_good(row.method)]
        best = min([*exact, *proven], key=lambda row: (self._seconds(row), row.gradient != "exact"), default=None)
        if best is None:
            return None, self._helpless()
        slow = self.slow_down(best)
        speed = f", slow-down {slow[0]:.2f} ({slow[1]})" if slow else ", slow-down unknown"
        if best in proven:
            count = len(self.evidence.accuracy[best.method.label])
            return best, (
                f"recommended: {best.label}: biased, but on this model and data the store has it as accurate as BPTT "
                f"on {count} seeds; the fastest of what fits{speed}"
            )
        return best, f"recommended: {best.label}: the exact method with the least slow-down of those that fit{speed}"

    def _helpless(self) -> str:
        exact = [row for row in self.rows if row.kind == "exact" and row.cost is not None]
        if not exact:
            return "recommended: none; no exact method could be predicted"
        least = min(exact, key=lambda row: row.cost.peak_bytes if row.cost else 0)
        assert least.cost is not None
        need = f"{least.label} needs {show_size(least.cost.peak_bytes)}"
        if least.batch is None or not least.batch.value:
            return f"recommended: none; no exact method fits: {need}"
        return f"recommended: none at N={self.spec.batch}; {need}, and fits up to N={least.batch}"

    def _seconds(self, row: Row) -> float:
        slow = self.slow_down(row)
        return slow[0] if slow else float("inf")

    def _cells(self, row: Row) -> list[str]:
        slow, cost = self.slow_down(row), row.cost
        remarks = [text for text in (row.reason, *row.notes) if text]
        if row.model != "same":
            remarks.append(row.model)
        if cost is not None and slow is None:
            remarks.append("slow-down not known: nothing was measured, and an estimate sees a part of its work")
        if row.numerics != "same":
            remarks.append("reduced precision")
        if cost is not None and cost.host_bytes:
            bus, size = self._weighed.bus, show_size(cost.host_bytes)
            way = f"and {size} in the host's memory, twice over {bus.name}" if bus else f"with {size} of copies"
            remarks.append(way)
        return [
            MARK if row is self.recommended else "",
            row.label,
            row.kind,
            show_size(cost.peak_bytes) if cost else NONE,
            show_size(cost.activation_bytes) if cost else NONE,
            f"{slow[0]:.2f}{'' if slow[1] == 'estimated' else ' (measured)'}" if slow else NONE,
            ("yes" if self.fits(row) else "no") if cost else NONE,
            str(row.batch) if row.batch else NONE,
            str(row.steps) if row.steps else NONE,
            "; ".join(remarks),
        ]


def reference_of(rows: Iterable[Row]) -> Row | None:
    """BPTT's row among these."""
    return next((row for row in rows if row.method.name == BASELINE), None)
