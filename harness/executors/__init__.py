"""Ways to run cells: each takes :class:`~harness.executors.job.Job` s and yields how their processes ended."""
