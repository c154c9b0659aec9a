"""Compile each kernel for an H100 (sm_90): ``python compile_kernels.py DTYPE``; prints how many were compiled."""

import sys
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from methods.kernels import lif_triton, pack_triton, rows_triton, stream_triton

TARGET = GPUTarget("cuda", 90, 32)
SURROGATES = ((0, 1), (2, 3), (4, 5, 6))
"""Which formulas each of the three neurons is compiled with: all seven."""


def build(kernel: Any, pointers: dict[str, str], numbers: dict[str, str], constants: dict[str, Any]) -> int:
    """Machine code of a kernel; the bytes must be there."""
    types = {name: f"*{kind}" for name, kind in pointers.items()} | numbers
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    compiled = triton.compile(source, target=TARGET, options={"enable_fp_fusion": False})
    assert len(compiled.asm["cubin"]) > 0
    return 1


def main(kind: str) -> int:
    """All kernels for tensors of ``kind``."""
    wide = tl.float64 if kind == "fp64" else tl.float32
    scalar = "fp64" if kind == "fp64" else "fp32"
    count = 0
    for width in (1, 4):
        sizes = {"count": "i64", "run": "i32"}
        count += build(
            pack_triton._pack, {"x_ptr": kind, "payload_ptr": "u8", "violations_ptr": "i64"}, sizes,
            {"WIDTH": width, "CHECK": True, "COMPUTE": wide, "BLOCK": pack_triton.BLOCK},
        )  # fmt: skip
        count += build(
            pack_triton._unpack, {"payload_ptr": "u8", "out_ptr": kind}, sizes,
            {"WIDTH": width, "BLOCK": pack_triton.BLOCK},
        )  # fmt: skip
    dtype = {"fp64": tl.float64, "fp32": tl.float32, "fp16": tl.float16, "bf16": tl.bfloat16}[kind]
    for one, two, out in ((0, -1, 1), (2, -1, 0), (1, 1, 2), (4, 0, 0)):
        count += build(
            rows_triton._move,
            {"one_ptr": "u8" if one else kind, "two_ptr": "u8" if two else kind, "out_ptr": "u8" if out else kind,
             "violations_ptr": "i64"},
            dict.fromkeys(("size", "run", "tiles", "steps"), "i32")
            | dict.fromkeys((f"{end}_{what}" for end in ("one", "two", "out") for what in ("step", "sample")), "i64"),
            {"ONE": one, "TWO": two, "OUT": out, "CHECK": out != 0, "KIND": dtype, "COMPUTE": wide,
             "BLOCK": rows_triton.BLOCK},
        )  # fmt: skip
    neurons = [
        ("multiply", False, False, True, 0.0), ("multiply", True, True, False, None), ("none", False, False, True, 0.0),
    ]  # fmt: skip
    for number, (mode, learnt, soft, decay, start) in enumerate(neurons):
        constants = {
            "MODE": mode, "SCALE": 0.5, "LEARNT": learnt, "NARROW": True, "DECAY_INPUT": decay, "THRESHOLD": 0.7,
            "LEVEL": 0.7, "SOFT": soft, "RESET": 0.0 if soft else -0.3, "START": start, "COMPUTE": wide, "T": 4,
        }  # fmt: skip
        tensors = dict.fromkeys(("x_ptr", "v0_ptr", "spikes_ptr", "u_ptr", "v_ptr"), kind)
        for bits in (False, True):
            count += build(
                lif_triton._forward_kernel,
                tensors | {"q_ptr": scalar, "scale_ptr": scalar, "shift_ptr": scalar, "bits_ptr": "u8"},
                {"count": "i32", "run": "i32", "x_step": "i64", "channels": "i32", "period": "i32"},
                constants | {"AFFINE": bits, "SPIKES": not bits, "KEEP": not bits, "BITS": bits,
                             "ROWS": 8 if bits else 1, "BLOCK": 64 if bits else lif_triton.BLOCK},
            )  # fmt: skip
        tensors = dict.fromkeys(("y_ptr", "v0_ptr", "spikes_ptr", "u_ptr"), kind)
        for bits in (False, True):
            count += build(
                stream_triton._fire,
                tensors | {"q_ptr": scalar, "scale_ptr": scalar, "shift_ptr": scalar, "bits_ptr": "u8"},
                dict.fromkeys(("size", "run", "tiles", "affine_step", "inner"), "i32")
                | {"y_step": "i64", "u_step": "i64", "spikes_step": "i64"},
                constants | {"AFFINE": bits, "SPIKES": not bits, "KEEP": True, "BITS": bits,
                             "ROWS": 8 if bits else 1, "BLOCK": 64 if bits else lif_triton.BLOCK},
            )  # fmt: skip
        tensors = dict.fromkeys(("grad_ptr", "grad_v_ptr", "u_ptr", "v0_ptr", "out_ptr", "grad_v0_ptr"), kind)
        sizes = {"count": "i32", "grad_step": "i32", "grad_last": "i64", "u_step": "i32", "u_last": "i64",
                 "out_step": "i32", "out_last": "i64"}  # fmt: skip
        for surrogate in SURROGATES[number]:
            count += build(
                lif_triton._backward_kernel, tensors | {"q_ptr": scalar, "sums_ptr": scalar}, sizes,
                constants | {"GRAD": True, "GRAD_V": True, "INNER": 1, "DETACH": learnt, "ALPHA": 2.0,
                             "SURROGATE": surrogate, "BLOCK": lif_triton.BLOCK},
            )  # fmt: skip
    print(count, "kernels compiled for", kind)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
