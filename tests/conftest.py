"""One thread per test process: small tensors only get slower with more, and the tests run beside each other."""

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import torch

torch.set_num_threads(1)
