"""Every kernel goes through Triton's whole compiler, down to machine code for a GPU that need not be here.

The interpreter runs Python; only this shows that the compiler takes the kernels, too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels.common import NEEDS

pytest.importorskip("triton", reason=NEEDS)
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("kind", ["fp64", "fp32", "fp16", "bf16"])
def test_kernels_compile_for_a_gpu(kind, tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    found = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("compile_kernels.py")), kind],
        env=environment, capture_output=True, text=True, cwd=tmp_path, timeout=280,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-2000:]
    assert int(found.stdout.split()[0]) == 27, found.stdout
