"""Triton's kernels run on the device where there is one, else on the CPU by Triton's interpreter.

Triton decides when it sees a kernel, so the switch comes before anything imports one.
"""

import importlib.util
import os

import torch

if importlib.util.find_spec("triton") is not None and not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
