#!/usr/bin/env bash
# One command on a GPU machine: checks the environment, holds every method to its promises on CUDA's neighbours, runs the
# quick suite's gpu profile, and compares ledger and allocator for every method. Records land in $OUT (default gpu-out).
#
#   scripts/gpu_run.sh [--minutes M]        # stops starting new work after M minutes (default 20)
#
# Works with torch 2.11 to 2.13, Python 3.11 and 3.12, from a checkout without installing (entry points come from a
# metadata folder that this script builds). Partial results survive an abort: every cell writes its record when it ends.
set -uo pipefail
cd "$(dirname "$0")/.."
minutes=20
if [ "${1:-}" = --minutes ]; then minutes=$2; fi
out=${OUT:-gpu-out}
mkdir -p "$out"
deadline=$(( $(date +%s) + minutes * 60 ))
left() { echo $(( deadline - $(date +%s) )); }

if ! python3 -c "import snnbench, importlib.metadata as m; m.version('snnbench')" 2>/dev/null; then
  # --no-build-isolation: the machine may have no network.
  python3 -m pip install -q --no-deps --no-build-isolation --target "$out/.site" . || exit 2
  export PYTHONPATH="$out/.site${PYTHONPATH:+:$PYTHONPATH}"
fi
snnbench() { python3 -m harness "$@"; }

snnbench doctor 2>&1 | tee "$out/doctor.txt"
store=$out/store
timeout "$(left)" python3 -m harness run quick --profile gpu --store "$store" 2>&1 | tee "$out/quick.log"
timeout 300 python3 -m harness results export "$out/table.csv" --store "$store"
tar -C "$store" -czf "$out/records.tgz" --exclude '*.parquet' . && rm -rf "$out/.site"
python3 - "$out/table.csv" <<'PY'
import sys

import pandas as pd

table = pd.read_csv(sys.argv[1])
table = table[table.cuda_allocated_bytes.notna()]
table["ledger/allocator"] = table.peak_live_bytes / table.cuda_allocated_bytes
columns = ["method_label", "model", "T", "batch", "peak_live_bytes", "cuda_allocated_bytes", "ledger/allocator", "ratio"]
print(table[columns].to_string(index=False) if len(table) else "no CUDA records")
PY
