"""Claims of an invented paper and records to judge them by; the numbers follow from builders.py's rules."""

from __future__ import annotations

from typing import Any

from harness.spec import Ref
from reports.claims.loading import Claim, parse
from reports.groups import Item
from tests.harness.samples import sample_memory
from tests.reports import builders as b

PEAK = 1000 * 2**20
"""Peak of the baseline in :func:`cell`."""

SETTING = """
[settings.net]
model = { name = "vgg", tau = 2.0 }
data = { name = "imagenet", sample = [3, 8, 8], classes = 10 }
T = 4
batch = 32
precision = "fp32"
"""


def claims(*tables: str, settings: str = SETTING) -> list[Claim]:
    """Claims of the paper ``invented``; each table lacks what most share."""
    head = '[paper]\nname = "invented"\ntitle = "An invented paper"\nsource = "none"\n'
    body = "".join(f'\n[[claim]]\nclaim = "a claim"\nprovenance = "notes"\n{table}\n' for table in tables)
    return parse(f"{head}{settings}{body}".encode(), "invented.toml")


def claim(**changes: Any) -> Claim:
    """One claim: 1000 MiB of peak, under the setting ``net``."""
    fields: dict[str, Any] = {
        "id": "peak", "setting": "net", "method": "bptt", "metric": "peak_memory", "value": 1000.0, "unit": "MiB",
    }  # fmt: skip
    fields |= changes
    lines = [f"{key} = {_toml(value)}" for key, value in fields.items() if value is not None]
    return claims("\n".join(lines))[0]


def _toml(value: Any) -> str:
    if isinstance(value, str) and value.startswith("{"):
        return value
    return f'"{value}"' if isinstance(value, str) else str(value)


def cell(number: int = 0, peak: int = PEAK, method: Ref | None = None, **changes: Any) -> Item:
    """A prediction of a cell with the setting's conditions; ``changes`` go to the spec."""
    spec: dict[str, Any] = {
        "model": Ref(name="vgg", options={"tau": 2.0, "depth": 11}),
        "data": Ref(name="shape", options={"sample": [3, 8, 8], "classes": 10}),
        "T": 4, "batch": 32, "predicted": True, "phases": ("memory",), **changes,
    }  # fmt: skip
    record = b.record(b.Invented(method or Ref(name="bptt"), 1.0, False, 1.0, 0.0, 0.0), number, **spec)
    memory = sample_memory(peak_live_bytes=peak, peak_activation_bytes=peak // 2)
    facts = {"sample": [3, 8, 8], "classes": 10, "source": "noise", "variant": None, "synthetic": True}
    gone = {"timing": None, "training": None, "fidelity": [], "ops": None} if spec["predicted"] else {}
    return b.items([record.model_copy(update={"memory": memory, "data": facts, **gone})])[0]
