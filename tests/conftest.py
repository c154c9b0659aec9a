"""What holds for every test process: one thread, and examples that are the same on every run.

Small tensors only get slower with more threads, and the tests run beside each other. A change is judged by the examples
that the code before it passed; ``pytest --hypothesis-profile explore`` draws new ones.
"""

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None)
settings.load_profile("same")
