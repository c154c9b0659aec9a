"""Speed of the Triton kernels on this GPU: as fractions of its copy bandwidth, and beside SpikingJelly's own.

Every time is the median of CUDA-event pairs, in rounds that interleave what is compared; buffers are far larger than
the cache. A kernel's bytes are those it must read and write once.

    python scripts/gpu_kernels.py OUT.json [ELEMENTS]
"""

import json
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("SJ_LIF_CUDA_IMPLEMENTATION", "triton")  # SpikingJelly's Triton neurons, not its CUDA ones

import torch
from spikingjelly.activation_based import neuron, surrogate
from spikingjelly.activation_based.memopt.compress import BitSpikeCompressor
from torch import Tensor

from methods import packing
from methods.kernels import affine_lif, lif, lif_stream
from methods.kernels.affine_lif import Affine
from methods.kernels.lif_torch import Neuron
from methods.streaming.rows import Rows

ROUNDS, WARM = 30, 5
STEPS = 8
ELEMENTS = 1 << 28
"""Of a sequence: 1 GiB in float32, far above any cache."""


def times(tasks: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of each task, in interleaved rounds."""
    seen: dict[str, list[Any]] = {name: [] for name in tasks}
    for number in range(WARM + ROUNDS):
        for name, task in tasks.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            task()
            end.record()
            if number >= WARM:
                seen[name].append((start, end))
    torch.cuda.synchronize()
    return {name: statistics.median(a.elapsed_time(b) for a, b in pairs) / 1e3 for name, pairs in seen.items()}


def measure(dtype: torch.dtype, elements: int) -> list[dict[str, Any]]:
    """Rows of one dtype: kernel, seconds, bytes, fraction of the copy's bandwidth, SpikingJelly's seconds."""
    x = torch.randn(STEPS, elements // STEPS, device="cuda").to(dtype)
    spikes, size = (x > 1).to(dtype), x.element_size()
    grad, violations = torch.randn_like(x), torch.zeros((), dtype=torch.int64, device="cuda")
    constants = Neuron(2.0, True, 1.0, 0.0, True, surrogate.ATan())
    kernel, node = lif.kernel(x.device), neuron.LIFNode(step_mode="m", surrogate_function=surrogate.ATan())
    packed, compressor = packing.pack(spikes, 1), BitSpikeCompressor()
    theirs = compressor.compress(spikes)
    u = kernel.membranes(x, 0.0, None, constants)
    leaf = x.clone().requires_grad_()
    n = elements
    rows: list[tuple[str, Callable[[], object], float, Callable[[], object] | None]] = [
        ("pack 1 bit", lambda: packing.pack(spikes, 1, violations), n * (size + 1 / 8),
         lambda: compressor.compress(spikes)),
        ("unpack 1 bit", lambda: packing.unpack(packed), n * (size + 1 / 8), lambda: compressor.decompress(theirs)),
        ("pack 4 bit", lambda: packing.pack(spikes, 4, violations), n * (size + 1 / 2), None),
        ("unpack 4 bit", lambda: packing.unpack(packing.pack(spikes[0], 4)), n / STEPS * (2 * size + 1), None),
        ("LIF forward, membranes kept", lambda: kernel.forward(x, 0.0, None, constants, keep=True), 3 * n * size, None),
        ("LIF backward, in place", lambda: kernel.backward(grad, None, u, 0.0, None, constants), 3 * n * size, None),
        ("LIF forward to bits", lambda: affine_lif.packed(x, None, 0.0, None, constants), n * (size + 1 / 8), None),
        ("affine + LIF to bits", lambda: affine_lif.packed(x.view(STEPS, -1, 64), channels(), 0.0, None, constants),
         n * (size + 1 / 8), None),
        ("LIF forward + backward", lambda: _both(lambda v: lif.sequence(v, 0.0, None, constants, "membrane")[0], leaf, grad),
         6 * n * size, lambda: _both(lambda v: _theirs(node, v), leaf, grad)),
        *streamed(x, constants),
    ]  # fmt: skip
    target = torch.empty_like(x)
    found = []
    for name, ours, moved, other in rows:
        tasks = {"copy": lambda: target.copy_(x), "ours": ours} | ({} if other is None else {"theirs": other})
        seconds = times(tasks)
        fraction = (moved / seconds["ours"]) / (2 * n * size / seconds["copy"])
        found.append({"kernel": name, "dtype": str(dtype).removeprefix("torch."), "seconds": seconds["ours"],
                      "of_copy_bandwidth": fraction, "spikingjelly_seconds": seconds.get("theirs")})  # fmt: skip
    return found


def streamed(x: Tensor, constants: Neuron) -> list[tuple[str, Callable[[], object], float, None]]:
    """The kernels of streamed layers: normalisation, neuron and packing in one launch; rows read, and added."""
    y, n = x.view(STEPS, 8, 64, -1), x.numel()
    if not lif_stream.fused(y):
        return []
    kept, total = (Rows.empty(width, tuple(y.shape), y.dtype, y.device) for width in (1, 2))
    shape = (1, 1, 64, 1)
    how = lif_stream.Affine(torch.ones(shape, device=y.device), torch.zeros(shape, device=y.device))
    wrong = torch.zeros((), dtype=torch.int64, device=y.device)
    bits = kept.payload
    return [
        ("streamed: affine + LIF to bits", lambda: lif_stream.fire_bits(y, None, how, 0.0, None, constants, bits),
         n * (x.element_size() + 1 / 8), None),
        ("streamed: unpack rows", lambda: kept.read(0, y.shape[1]), n * (x.element_size() + 1 / 8), None),
        ("streamed: add rows", lambda: total.add(kept, kept, wrong), n / 2, None),
    ]  # fmt: skip


def channels() -> Affine:
    """An affine map over 64 channels in the last dimension."""
    return Affine(torch.ones(64, device="cuda"), torch.zeros(64, device="cuda"), dim=1)


def _both(forward: Callable[[Tensor], Tensor], leaf: Tensor, grad: Tensor) -> None:
    leaf.grad = None
    forward(leaf).backward(grad)


def _theirs(node: Any, x: Tensor) -> Tensor:
    node.reset()
    return node(x)


def main(out: str, elements: str = str(ELEMENTS)) -> int:
    """Measure, write, print."""
    if not torch.cuda.is_available():
        print("gpu_kernels: needs a CUDA device", file=sys.stderr)
        return 2
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name(), "torch": torch.__version__, "elements": int(elements), "steps": STEPS,
        "kernels": lif.kernel(torch.device("cuda")).NAME, "rows": [], "failed": {},
    }  # fmt: skip
    for dtype in (torch.float32, torch.bfloat16):
        try:
            found["rows"] += measure(dtype, int(elements))
        except (RuntimeError, ImportError, ValueError, TypeError) as error:  # one dtype must not lose the other
            found["failed"][str(dtype)] = f"{type(error).__name__}: {error}"
        Path(out).write_text(json.dumps(found, indent=1))
    for row in found["rows"]:
        other = row["spikingjelly_seconds"]
        beside = "" if other is None else f"; SpikingJelly {other * 1e3:.2f} ms ({other / row['seconds']:.2f} x)"
        print(f"{row['dtype']:<9} {row['kernel']:<28} {row['seconds'] * 1e3:7.2f} ms, "
              f"{row['of_copy_bandwidth']:.0%} of a copy's bandwidth{beside}")  # fmt: skip
    for dtype, why in found["failed"].items():
        print(f"{dtype}: {why}")
    return 1 if found["failed"] else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
