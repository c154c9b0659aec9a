#!/usr/bin/env bash
# One command on a GPU machine: what works there; the kernels' tests and speed on the device; the ledger against CUDA's
# allocator for every method; streamed and checkpoint-compress against BPTT and SpikingJelly's levels on SEW-ResNet-34;
# `snnbench plan`'s largest batches under a cap of 8 and 24 GiB; short training on CIFAR-10 where it is at hand; and the gpu
# profiles of quick, scaling and cifar as far as the time goes. Energy comes with every timed cell.
#
#   scripts/gpu_run.sh [--minutes M] [--wheels DIR] [--store DIR] [--device cuda|cpu]
#
#   --minutes M    start nothing new after M minutes, and stop what runs (default 20)
#   --wheels DIR   install these wheels for this run only, without a network
#   --store DIR    where records go (default results/gpu); the same command again resumes
#   --device cpu   a rehearsal of the same stages at tiny sizes, without the kernels; its numbers mean nothing
#
# Results land in $OUT (default gpu-out), at most eight files: doctor.txt, kernel_tests.txt, kernels.json, plan.json,
# run.log, table.csv, table.txt (the short table), records.tgz (records, a snapshot of the allocator, and under extra/ what
# NVML answered). The records are brought up to date every half minute, so an abort loses little.
#
# Works with torch 2.11 to 2.13 and Python 3.11 and 3.12, offline, in a checkout that is not installed. Exit codes: 0 all
# went well, 1 something failed or did not fit, 2 nothing can run here.
set -uo pipefail
cd "$(dirname "$0")/.."
minutes=20 wheels="" store=results/gpu device=cuda python=${PYTHON:-python3}
while [ $# -gt 0 ]; do
  case $1 in
    --minutes) minutes=${2:?--minutes needs a number}; shift 2 ;;
    --wheels) wheels=${2:?--wheels needs a folder}; shift 2 ;;
    --store) store=${2:?--store needs a folder}; shift 2 ;;
    --device) device=${2:?--device needs cuda or cpu}; shift 2 ;;
    *) echo "gpu_run: unknown option $1 (allowed: --minutes M, --wheels DIR, --store DIR, --device cuda|cpu)" >&2; exit 2 ;;
  esac
done
case $minutes in ''|*[!0-9]*) echo "gpu_run: --minutes takes a whole number, not '$minutes'" >&2; exit 2 ;; esac
case $device in
  cuda) profile=gpu ;;
  cpu) profile=cpu ;;
  *) echo "gpu_run: --device takes cuda or cpu, not '$device'" >&2; exit 2 ;;
esac
deadline=$(( $(date +%s) + minutes * 60 ))
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
if [ -n "$wheels" ]; then
  "$python" -m pip install -q --no-index --no-deps --no-compile --target "$site" "$wheels"/*.whl || exit 2
fi
export PYTHONPATH="$PWD:$site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
"$python" scripts/gpu_check.py "$site" "$device" || exit 2

out=${OUT:-gpu-out}
mkdir -p "$out" "$store"
failed=0

left() { echo $(( deadline - $(date +%s) )); }
# pack: records, table and its text, each written aside and renamed
pack() {
  keep
  "$python" -m harness results export "$site/table.csv" --store "$store" >"$site/export.log" 2>&1 || return 0
  "$python" scripts/gpu_table.py "$site/table.csv" --device "$device" --kernels "$out/kernels.json" --plan "$out/plan.json" \
    >"$site/table.txt" 2>&1
  for name in table.csv table.txt; do mv -f "$site/$name" "$out/$name"; done
}
# keep: the records alone, which costs next to nothing beside a timed cell; snapshots only where they are small
keep() {
  mkdir -p "$site/extra"
  find "$store" -name '*.pickle' -size +4M -printf '%P\n' 2>/dev/null | sed 's,^,./,' >"$site/large"
  tar -C "$store" --exclude='*.parquet' --exclude='.partial' --exclude='.runs' --exclude-from="$site/large" -czf "$site/records.tgz" . \
    -C "$site" extra && mv -f "$site/records.tgz" "$out/records.tgz"
}
# stage SECONDS NAME COMMAND...: at most that long, never beyond the deadline; a failure is noted and the rest goes on
stage() {
  local limit=$1 name=$2 rest
  shift 2
  rest=$(left)
  if [ "$rest" -lt 15 ]; then echo "== $name: skipped, no time is left"; failed=1; return 1; fi
  [ "$limit" -gt "$rest" ] && limit=$rest
  echo "== $name (at most $limit s)"
  timeout --signal=INT --kill-after=20 "$limit" "$@" || { echo "== $name: exit code $?"; failed=1; return 1; }
}
finish() {
  trap '' INT TERM
  trap - EXIT
  [ -n "${packer:-}" ] && kill "$packer" 2>/dev/null && wait "$packer" 2>/dev/null
  pack
  [ -f "$out/table.txt" ] && cat "$out/table.txt"
  rm -rf "$site"
  exit "$failed"
}
trap finish EXIT
trap 'failed=1; exit 1' INT TERM
( trap - EXIT; while sleep 30; do keep; done ) 2>/dev/null &
packer=$!

suite() { stage "$1" "$2" "$python" -m harness run "$3" --profile "$profile" --store "$store" "${@:4}"; }

{
  stage 120 "what works here" "$python" -m harness doctor --store "$store" 2>&1 | tee "$out/doctor.txt" || failed=1
  if [ "$device" = cuda ]; then
    mkdir -p "$site/extra"
    stage 60 "NVML" "$python" scripts/gpu_nvml.py "$site/extra/nvml.json"
    if "$python" -c "import pytest, hypothesis, pytest_timeout" 2>/dev/null; then
      stage 420 "kernels' tests on the device" "$python" -m pytest -q tests/kernels tests/harness/test_allocator_model.py \
        2>&1 | tee "$out/kernel_tests.txt" || failed=1
    else
      echo "== kernels' tests: skipped, pytest, hypothesis or pytest-timeout is not installed" | tee "$out/kernel_tests.txt"
    fi
    stage 300 "kernels' speed" "$python" scripts/gpu_kernels.py "$out/kernels.json"
    plan=()
  else
    plan=(--budgets 832MiB --methods bptt --sample 1,16,16 --classes 10 --batch 16 --model '{"name": "convnet", "channels": [8]}')
  fi
  suite 600 "less memory, and what it costs" "$site/gpu-versus.toml"
  suite 900 "ledger against allocator" "$site/gpu-memory.toml"
  if [ "$device" = cuda ]; then
    suite 60 "a snapshot of the allocator" "$site/gpu-memory.toml" --only grid=every-method \
      --only method=bptt --only model=convnet --fresh --snapshot
  fi
  rest=$(left)
  stage 600 "plan's largest batches" "$python" scripts/gpu_plan.py "$out/plan.json" --device "$device" \
    --seconds $(( rest < 500 ? rest / 2 : 400 )) "${plan[@]}"
  suite 600 "short training" "$site/gpu-train.toml"
  if [ "$device" = cuda ]; then
    for name in quick scaling cifar; do suite 86400 "suite $name" "$name"; done
  fi
} > >(tee "$out/run.log") 2>&1
