"""What changed in times: by ratios to the baseline, since two runs of one code differ by more than a regression does.

Seen with the suite quick on two shared cores: from one run of bptt to the next, its step took 0.7 to 1.2 times as long
with both timings marked ``stable``, and 1.0 to 3.2 times beside other work. Ratios to a baseline that was timed in turn,
in the same process, cancel most of that. So:

* a cell with a ratio in both stores is judged by it. It is worse or better beyond the threshold *and* beyond chance,
  which is made of the ratios' own intervals and of what ratios scatter by from run to run: as measured, where cells were
  run several times in a store, else :data:`harness.compare.sides.RUN_TO_RUN`. The bar is set for all of them together.
* a cell without one, first of all the baseline itself, is not judged: from times alone a slower machine and slower code
  look the same. How all timings of a baseline moved, those beside the methods included, is told instead.
* with :attr:`Limits.absolute` the times themselves are judged: for two runs on one quiet machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from harness.compare.measures import Delta, Limits, Verdict, change, environment_differences
from harness.compare.sides import Noise, Pair, pair, run_to_run, shifts
from harness.record import Record

Key = tuple[str, str]
Runs = Mapping[Key, Sequence[Record]]
"""Suite and cell; its runs under one fingerprint, the latest last."""


class Times:
    """Times of two stores that can be compared: of cells whose machine and environment are the same.

    Attributes:
        noise: what chance does to their ratios.
        shifts: how the baselines' own times moved.
    """

    def __init__(self, before: Runs, after: Runs, limits: Limits) -> None:
        self._limits = limits
        found = {key: _comparable(before[key], after[key]) for key in before if key in after}
        self._pairs = {key: each for key, each in found.items() if each is not None}
        pairs = list(self._pairs.values())
        self.noise = Noise(sum(each.has_ratio for each in pairs), run_to_run([*before.values(), *after.values()]))
        self.shifts = shifts(pairs)

    def deltas(self, key: Key, wanted: frozenset[str]) -> Iterator[Delta]:
        """Ratio and step time of a cell; none where they cannot be compared.

        Args:
            key: suite and cell.
            wanted: names of measures.
        """
        each = self._pairs.get(key)
        if each is None:
            return
        if "ratio" in wanted and (each.before.ratio or each.after.ratio):
            yield self._ratio(each)
        if "time" in wanted:
            verdict, note = self._alone(each) if self._limits.absolute else self._beside(each)
            one, other = each.before, each.after
            yield Delta("time", one.step, other.step, verdict, "", one.step_interval, other.step_interval, note)

    def limits(self) -> list[float]:
        """Of every judged ratio, the factor from where on it is worse; ascending."""
        least = 1 + self._limits.threshold
        return sorted(max(least, self.noise.limit(each)) for each in self._pairs.values() if each.has_ratio)

    def _ratio(self, each: Pair) -> Delta:
        one, other = each.before, each.after
        if one.ratio is None or other.ratio is None:
            note = f"no value in {'A' if one.ratio is None else 'B'}"
            return Delta("ratio", one.ratio, other.ratio, "changed", each.baseline, note=note)
        low, high = sorted((one.ratio, other.ratio))
        limit = self.noise.limit(each)
        verdict = change(one.ratio, other.ratio, self._limits.threshold)
        note = f"step {_ms(one.step)} -> {_ms(other.step)}, {each.baseline} {_ms(one.base)} -> {_ms(other.base)}"
        if verdict in ("worse", "better"):
            note = f"{'beyond' if high > low * limit else 'within'} chance, which reaches {limit:.2f} times; {note}"
        if verdict == "changed" or high <= low * limit:
            verdict = "same"
        intervals = one.ratio_interval, other.ratio_interval
        return Delta("ratio", one.ratio, other.ratio, verdict, each.baseline, *intervals, note)

    def _alone(self, each: Pair) -> tuple[Verdict, str]:
        """By medians and their intervals."""
        one, other = each.before, each.after
        verdict = change(one.step, other.step, self._limits.threshold)
        if verdict in ("same", "changed"):
            return "same", ""
        if max(one.step_interval[0], other.step_interval[0]) <= min(one.step_interval[1], other.step_interval[1]):
            return "same", "the intervals overlap"
        if disturbed := [name for name, side in (("A", one), ("B", other)) if side.disturbed]:
            return "not judged", f"disturbed in {' and '.join(disturbed)}"
        return verdict, ""

    def _beside(self, each: Pair) -> tuple[Verdict, str]:
        """Where the ratio is judged instead, or nothing can be."""
        if each.has_ratio:
            return "not judged", f"its ratio to {each.baseline} is"
        verdict, note = self._alone(each)
        if verdict not in ("worse", "better"):
            return verdict, note
        # A baseline's own times are told together; a method whose baseline did not fit is told alone.
        return (
            ("not judged", "machine or code") if each.own else ("changed", f"not judged: no ratio to {each.baseline}")
        )


def _comparable(before: Sequence[Record], after: Sequence[Record]) -> Pair | None:
    elsewhere = environment_differences(before[-1].provenance, after[-1].provenance)
    return None if elsewhere else pair(before, after)


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.4g} ms"
