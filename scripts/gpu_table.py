"""The short table at the end of a GPU run, from the exported records.

python scripts/gpu_table.py TABLE.csv
"""

import sys

import pandas as pd

MIB = 2**20


def table(path: str) -> str:
    """One line a cell that was measured on the GPU, failures counted below."""
    rows = pd.read_csv(path)
    rows = rows[(rows.device == "cuda") & ~rows.predicted.astype(bool)]
    fine = rows[rows.cuda_allocated_bytes.notna() | rows.step_time_s.notna()]
    shown = pd.DataFrame(
        {
            "suite": fine.suite,
            "method": fine.method_label,
            "model": fine.model,
            "T": fine["T"],
            "batch": fine.batch,
            "ledger MiB": (fine.peak_live_bytes / MIB).round(1),
            "allocator MiB": (fine.cuda_allocated_bytes / MIB).round(1),
            "ledger/allocator": (fine.peak_live_bytes / fine.cuda_allocated_bytes).round(3),
            "step ms": (fine.step_time_s * 1e3).round(2),
            "x baseline": fine.ratio.round(3),
            "J a step": fine.energy_per_step_j.round(3),
        }
    ).sort_values(["suite", "model", "T", "batch", "method"])
    lines = [shown.to_string(index=False, na_rep="-") if len(shown) else "no cell was measured on the GPU"]
    counts = rows.status.value_counts()
    lines.append("cells: " + (", ".join(f"{count} {status}" for status, count in counts.items()) or "none"))
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(sys.argv[1]))
