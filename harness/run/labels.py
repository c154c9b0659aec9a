"""Cells in one short line for people."""

from __future__ import annotations

from harness.registry import short_label
from harness.spec import CellSpec


def cell_label(spec: CellSpec) -> str:
    """Like :meth:`CellSpec.label`, with only those options that are not at their defaults."""
    parts = [
        short_label("methods", spec.method),
        short_label("models", spec.model),
        short_label("datasets", spec.data),
        f"T={spec.T} N={spec.batch}",
    ]
    parts += [spec.loss.kind] if spec.loss.kind != "per_step" else []
    parts += [spec.precision] if spec.precision != "fp32" else []
    parts += [f"{spec.devices} devices"] if spec.devices > 1 else []
    parts += [f"seed={spec.seed}"] if "train" in spec.phases else []
    return " | ".join([*parts, "predict" if spec.predicted else "+".join(spec.phases)])
