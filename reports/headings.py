"""Headings of groups: what they always say, and of the rest what tells them apart on the page."""

from __future__ import annotations

from collections.abc import Sequence

from reports.groups import Group, recipe_line
from reports.labels import Labels

ALWAYS = ("model", "data", "T", "batch")
"""Facts that every heading names, in this order."""


def facts(group: Group, labels: Labels) -> dict[str, str | int]:
    """What all rows of a group share, by name.

    Args:
        group: rows that may share ratios.
        labels: short names.
    """
    spec = group.spec
    told = {
        "smoothing": spec.loss.label_smoothing or None, "mse_weight": spec.loss.mse_weight,
        "lambda": spec.loss.tet_lambda, "means": spec.loss.tet_means,
    }  # fmt: skip
    numbers = "".join(f" {name}={value:g}" for name, value in told.items() if value is not None)
    return {
        "model": labels.short("model", spec.model),
        "data": labels.short("data", spec.data),
        "T": spec.T,
        "batch": spec.batch,
        "loss": f"{spec.loss.kind} {spec.loss.criterion}{numbers}",
        "precision": spec.precision,
        "device": spec.device_label,
        "normalisation": group.normalisation or "unknown",
        "recipe": recipe_line(spec.recipe),
        "profile": spec.profile,
        "kind": "predicted" if spec.predicted else "measured",
        "fingerprint": group.record.fingerprint,
    }


class Headings:
    """Names groups on a page.

    Args:
        groups: all groups of the page.
        labels: short names.
    """

    def __init__(self, groups: Sequence[Group], labels: Labels) -> None:
        self.labels = labels
        self._every = every = [facts(group, labels) for group in groups]
        names = every[0] if every else {}
        self.values = {name: sorted({line[name] for line in every}, key=lambda v: (str(type(v)), v)) for name in names}
        """The values of each fact on the page."""
        fingerprints = [str(value) for value in self.values.get("fingerprint", [])]
        self.environments = {fingerprint: _letter(i) for i, fingerprint in enumerate(fingerprints)}
        """A letter for each fingerprint; the provenance section explains them."""

    def title(self, group: Group, without: Sequence[str] = ()) -> str:
        """Model, data, T and batch, and what else tells the group from the page's others of the same.

        Args:
            group: the group.
            without: facts to leave out, where a figure runs over them.
        """
        line = facts(group, self.labels)
        shown = [name for name in ALWAYS if name not in without]
        like = [other for other in self._every if all(other[name] == line[name] for name in shown)]
        parts = []
        for name, value in line.items():
            if name in without or (name not in ALWAYS and len({other[name] for other in like}) < 2):
                continue
            parts.append(self._say(name, value))
        return " \u00b7 ".join(part for part in parts if part)

    def details(self, group: Group) -> str:
        """The facts that are not in every title, in one line."""
        line = facts(group, self.labels)
        said = [self._say(name, value) for name, value in line.items() if name not in ALWAYS]
        return " \u00b7 ".join(part for part in said if part)

    def _say(self, name: str, value: str | int) -> str:
        if name == "fingerprint":
            return f"environment {self.environments[str(value)]}"
        if name in ("model", "data", "loss", "precision", "device", "recipe"):
            return str(value)
        if name == "kind":
            return "predicted" if value == "predicted" else ""
        return f"{name} = {value}" if name in ("T", "batch") else f"{name}: {str(value).replace('_', ' ')}"


def _letter(number: int) -> str:
    """A, B, ..., Z, AA, AB, ...

    Args:
        number: from 0.
    """
    head, tail = divmod(number, 26)
    return (_letter(head - 1) if head else "") + chr(ord("A") + tail)
