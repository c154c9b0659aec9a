"""What each registered method costs on a small fixed cell, tracked over the project's history by asv.

Bytes, gradient error and plan time are deterministic or nearly so: a regression of one byte shows. Times are asv's own.
"""

import math
import os
from importlib import metadata

os.environ.setdefault("OMP_NUM_THREADS", "1")

# asv starts a process for every number and imports this module in it: names only, the plugins where they are needed.
METHODS = sorted(point.name for point in metadata.entry_points(group="snnbench.methods"))
MODEL = {"name": "convnet", "norm": "per_step", "channels": [16, 32]}
CELL = {"T": 8, "batch": 32}


def _spec(method, **fields):
    import snnbench

    return snnbench.cell(method, MODEL, "digits", **CELL, **fields)


class Costs:
    """One reduced grid, measured once in ``setup_cache`` and read by the tracks."""

    params = METHODS
    param_names = ("method",)
    timeout = 600

    def setup_cache(self):
        import torch

        torch.set_num_threads(1)
        return {method: self._measure(method) for method in METHODS}

    def _measure(self, method):
        import snnbench

        try:
            memory = snnbench.measure_memory(_spec(method))
            fidelity = snnbench.measure_fidelity(_spec(method))
            timing = snnbench.measure_time(_spec(method))
        except (snnbench.Unsupported, snnbench.Unavailable, snnbench.UsageError):
            return None
        costs = {
            "peak": memory.peak_live_bytes,
            "activations": memory.peak_activation_bytes,
            "saved": memory.saved_bytes,
            "plan": memory.plan_seconds,
            "error": fidelity.relative_l2,
            "ratio": 1.0 if timing.ratio is None else timing.ratio,
        }
        return {name: math.nan if value is None else value for name, value in costs.items()}

    def setup(self, costs, method):
        if costs[method] is None:
            raise NotImplementedError  # asv's word for "does not apply"

    def track_peak_live_bytes(self, costs, method):
        return costs[method]["peak"]

    track_peak_live_bytes.unit = "bytes"

    def track_peak_activation_bytes(self, costs, method):
        return costs[method]["activations"]

    track_peak_activation_bytes.unit = "bytes"

    def track_saved_bytes(self, costs, method):
        return costs[method]["saved"]

    track_saved_bytes.unit = "bytes"

    def track_gradient_error(self, costs, method):
        return costs[method]["error"]

    track_gradient_error.unit = "relative L2"

    def track_plan_time(self, costs, method):
        return costs[method]["plan"]

    track_plan_time.unit = "s"

    def track_step_time_ratio(self, costs, method):
        return costs[method]["ratio"]

    track_step_time_ratio.unit = "x baseline, paired"


class Step:
    """Time of one settled training step."""

    params = METHODS
    param_names = ("method",)
    timeout = 300

    def setup(self, method):
        import torch

        import snnbench
        from harness.build import open_bench

        torch.set_num_threads(1)
        try:
            bench, _ = open_bench(_spec(method))
            self.trainer = bench.trainer()
        except (snnbench.Unsupported, snnbench.Unavailable, snnbench.UsageError):
            raise NotImplementedError from None
        self.batch = bench.batch
        self.trainer.step(*self.batch)

    def time_step(self, method):
        self.trainer.step(*self.batch)
