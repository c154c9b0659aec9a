"""The tables, whole, against files under golden/.

After a change that is meant to change them: ``SNNBENCH_WRITE_GOLDEN=1 python -m pytest tests/reports/test_golden.py``,
then read the difference.
"""

import io
import os
from pathlib import Path

import pandas as pd
import pytest

from tests.reports import builders as b

GOLDEN = Path(__file__).parent / "golden"


def golden(name, made):
    """The golden text; first replaced by what was made, where that is asked for."""
    file = GOLDEN / name
    if os.environ.get("SNNBENCH_WRITE_GOLDEN"):
        file.write_text(made, encoding="utf-8")
    return file.read_text(encoding="utf-8")


@pytest.mark.parametrize("ending", ["md", "tex"])
def test_text(report, ending):
    made = (report / f"{b.SUITE}.{ending}").read_text(encoding="utf-8")
    assert made == golden(f"tables.{ending}", made)


def test_csv(report):
    # Paths hold hashes of the whole spec, and last digits are scipy's: neither is the table's.
    made = pd.read_csv(report / f"{b.SUITE}.csv").drop(columns="records")
    expected = pd.read_csv(io.StringIO(golden("tables.csv", made.to_csv(index=False))))
    pd.testing.assert_frame_equal(made, expected, rtol=1e-9)


def test_csv_is_raw_and_tidy(report):
    table = pd.read_csv(report / f"{b.SUITE}.csv")
    row = table[(table["method"] == "checkpoint") & (table["T"] == 8) & (table["kind"] == "measured")].iloc[0]
    # 0.5 of 8 steps x 32 samples x 8 KiB, and 64 KiB of temporaries; BPTT keeps all of it.
    assert row["peak_activation_bytes"] == 0.5 * 8 * 32 * 8192 + 65536
    assert row["activation_less"] == pytest.approx((8 * 32 * 8192 + 65536) / row["peak_activation_bytes"])
    assert row["accuracy_seeds"] == 2
    assert len(row["records"].split()) == 2
    assert not table.duplicated(["model", "data", "T", "kind", "method"]).any()


def test_csv_says_why_a_value_is_absent(report):
    table = pd.read_csv(report / f"{b.SUITE}.csv").set_index("method")
    assert "peak_live_bytes: unsupported in build: it was unsupported" in table.loc["ottt", "reasons"]
    assert pd.isna(table.loc["ottt", "peak_live_bytes"])


def test_markdown_has_whole_rows(report):
    lines = (report / f"{b.SUITE}.md").read_text(encoding="utf-8").splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert {line.count("|") for line in table} == {14, 8}  # measured groups, and predicted ones with fewer columns


def test_latex_escapes_and_balances(report):
    text = (report / f"{b.SUITE}.tex").read_text(encoding="utf-8")
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 4
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert body.isascii()
    assert not [line for line in body.splitlines() if "%" in line.replace(r"\%", "")]
