"""Levels O2 to O4: which segments to cut, in space and in time, and which to restore; planned without a device.

Every segment is measured by the ledger on a fake copy (:mod:`methods._twin`), alone and once for every way to run it;
the step's peak is put together from that (:mod:`methods._profile`). Equal ones are measured once. A level's result is
run as a whole too where it is close to the level before it, and given up where that one is lower.

* **O2, spatial**: cut the segment that reaches the peak, or set its neurons apart (:mod:`methods._layout`); the cut
  with the lowest peak is taken, as long as the peak strictly falls. The search starts twice: from whole stages, and
  with every residual stage cut wherever weights, sums or products follow on values that can be packed, because the cut
  of one stage may pay off only when another one is cut; what need not have been cut is joined again.
* **O3, temporal**: the same with twice as many pieces of time. It uncovers the next segment, for which O2 had no reason
  to act: both are repeated until neither lowers the peak (the paper runs each once).
* Both starts are followed to the end, and the lower peak is taken, so no level is above the one before it.
* **O4, restoration**: segments in descending forward time go back to plain if the peak does not rise; one pass. The
  time is **estimated** from FLOPs and bytes: no device measured it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from harness.contracts import Loss, StagedModel
from methods import _profile as profile
from methods._layout import Layout, Segment, can_cut, in_time, neurons, whole
from methods._measure import faking
from methods._twin import Autocast, Measured, Memory, Setting, Twin

Level = Literal["O1", "O2", "O3", "O4"]
Moves = Callable[[Segment], Iterator[list[Segment]]]

CLOSE = 0.05
"""Peaks put together from parts are told apart from here on. On the networks tried they were within 0.03 % of the whole
step's, on one of 200 KiB within 4 % (blocks of 512 bytes; our choice)."""
CACHED_PLANS = 256
"""How many plans a process remembers (our choice): a cell prepares the same model several times."""


@dataclass(frozen=True)
class Plan:
    """What was decided.

    Args:
        segments: of the whole model, in order.
        peak_bytes: most bytes live in a training step, without optimizer state.
    """

    segments: tuple[Segment, ...]
    peak_bytes: int


_PLANS = Memory(CACHED_PLANS)


def plan(model: StagedModel, x: Tensor, loss: Loss, level: Level, compressor: str, measured: Measured) -> Plan:
    """Decide how the stages of ``model`` run.

    Args:
        model: in the mode it will train in, its states reset; not run: a fake copy is.
        x: one batch ``[T, N, ...]``, real or fake.
        loss: the objective.
        level: how far to go.
        compressor: how inputs are kept.
        measured: widths that a run found.

    Raises:
        ValueError: a forward depends on values.
    """
    setting = Setting(profile.meta_of(x), loss, compressor, measured, autocast_of(x))
    criterion, known = repr(loss.criterion), tuple(measured.items())
    key = profile.structure(model), setting.given, loss.kind, criterion, level, compressor, known, setting.amp
    if key not in _PLANS:
        with faking() as mode:
            _PLANS.put(key, _Search(Twin(model, setting, mode), steps=x.shape[0]).run(level))
    return _PLANS[key]


def autocast_of(x: Tensor) -> Autocast:
    """Whether autocast is on for the device of ``x``, and its dtype."""
    enabled = torch.is_autocast_enabled(x.device.type)
    return enabled, torch.get_autocast_dtype(x.device.type) if enabled else torch.bfloat16


class _Search:
    """The layout of one model with ``steps`` time steps."""

    def __init__(self, twin: Twin, steps: int) -> None:
        self._twin, self._steps = twin, steps
        self._timed = False
        self._cuttable = [can_cut(program) for program in twin.programs]

    def run(self, level: Level) -> Plan:
        """The plan of a level, by way of those below it."""
        stages = whole(self._twin.programs)
        best, coarse, fine = stages, list(stages), self._fine(stages)
        tracks = [coarse] if fine == stages else [coarse, fine]
        if level != "O1":
            self._lower(coarse, self._spatial)
            if len(tracks) > 1:
                self._descend(fine, self._spatial)
            best = self._lowest([best, *tracks])
        if level in ("O3", "O4"):
            self._timed = True
            while self._lower(coarse, self._temporal) and self._lower(coarse, self._spatial):
                pass
            if len(tracks) > 1:
                fine[:] = [self._in_pieces(segment) for segment in fine]
                self._descend(fine, self._any)
            best = self._lowest([best, *tracks])
        peak = self._twin.exact(best)
        if level == "O4":
            best, peak = self._restored(best, peak)
        return Plan(tuple(best), peak)

    def _lowest(self, layouts: list[Layout]) -> Layout:
        """The layout with the lowest peak, joined where it can be."""
        best = layouts[0]
        for layout in layouts[1:]:
            best = self._lower_one(best, self._joined(layout))
        return best

    def _descend(self, layout: Layout, moves: Moves) -> None:
        """Apply moves in place while the peak falls; also one that raises it, where those after it more than undo that."""
        while True:
            while self._lower(layout, moves) or self._thinner(layout):
                pass
            peak, where = self._twin.peak(layout)
            tried = [_changed(layout, where, new) for new in moves(layout[where])] if where < len(layout) else []
            for one in tried:
                while self._lower(one, moves) or self._thinner(one):
                    pass
            found = min(tried, key=lambda one: self._twin.peak(one)[0], default=layout)
            if self._twin.peak(found)[0] >= peak:
                return
            layout[:] = found

    def _fine(self, layout: Layout) -> Layout:
        """Every residual stage cut as far as its values can be packed."""
        found = []
        for segment in layout:
            cuts = self._twin.cuts[segment.stage] if self._is_block(segment.stage) else []
            bounds = zip([0, *cuts], [*cuts, segment.stop], strict=True)
            found += [Segment(segment.stage, start, stop) for start, stop in bounds]
        return found

    def _joined(self, layout: Layout) -> Layout:
        """Residual stages back to one piece, and all in fewer pieces of time, where the peak does not rise."""
        limit, result = self._twin.peak(layout)[0], list(layout)
        for index, program in enumerate(self._twin.programs):
            places = [at for at, segment in enumerate(result) if segment.stage == index]
            if len(places) > 1 and self._is_block(index):
                one = Segment(index, 0, len(program.steps))
                new = [*result[: places[0]], one, *result[places[-1] + 1 :]]
                if self._twin.peak(new)[0] <= limit:
                    result = new
        for at, segment in enumerate(result):
            for longer in self._longer(segment):
                new = _changed(result, at, [longer])
                if self._twin.peak(new)[0] <= limit:
                    result = new
                    break
        return result

    def _longer(self, segment: Segment) -> Iterator[Segment]:
        """A segment in fewer pieces of time, the fewest first."""
        if segment.chunks > 1:
            yield from (replace(segment, chunks=1 << power) for power in range(segment.chunks.bit_length() - 1))
        elif segment.inner:
            yield replace(segment, inner=0)
            yield from (replace(segment, inner=1 << power) for power in range(segment.inner.bit_length() - 1))

    def _in_pieces(self, segment: Segment) -> Segment:
        """A segment in the pieces of time that its own backward takes least with, the fewest of equal ones."""
        found = [segment]
        if segment.inner == 0 and self._twin.can_part(segment):
            found.append(replace(segment, inner=1))
        while self._timed and (longer := next(self._temporal(found[-1]), None)):
            found += longer
        return min(found, key=self._twin.backward)

    def _thinner(self, layout: Layout) -> bool:
        """Join neighbours before the peak, in place, where it falls: what they keep between them is alive there."""
        peak, where = self._twin.peak(layout)
        for at in range(min(where, len(layout) - 1)):
            one, other = layout[at : at + 2]
            if one.stage != other.stage or self._twin.programs[one.stage].ends(one.start, other.stop) is None:
                continue
            joined = self._in_pieces(Segment(one.stage, one.start, other.stop))
            new = [*layout[:at], joined, *layout[at + 2 :]]
            if self._twin.peak(new)[0] < peak:
                layout[:] = new
                return True
        return False

    def _is_block(self, stage: int) -> bool:
        """True for a stage that can be cut inside a block."""
        return self._cuttable[stage] and not self._twin.programs[stage].is_chain

    def _lower_one(self, old: Layout, new: Layout) -> Layout:
        """The layout with the lower peak; whole steps decide where the sums of their parts lie close together."""
        if new == old or self._twin.peak(new)[0] < (1 - CLOSE) * self._twin.peak(old)[0]:
            return new
        return new if self._twin.exact(new) < self._twin.exact(old) else old

    def _lower(self, layout: Layout, moves: Moves) -> bool:
        """Apply moves to the segment at the peak, in place, while the peak falls; True if it did."""
        peak, where = self._twin.peak(layout)
        moved = False
        while where < len(layout):
            tried = [(*self._twin.peak(_changed(layout, where, new)), new) for new in moves(layout[where])]
            if not tried or min(tried, key=_bytes)[0] >= peak:
                break
            peak, following, new = min(tried, key=_bytes)
            layout[where : where + 1], where, moved = new, following, True
        return moved

    def _any(self, segment: Segment) -> Iterator[list[Segment]]:
        yield from self._spatial(segment)
        yield from self._temporal(segment)

    def _spatial(self, segment: Segment) -> Iterator[list[Segment]]:
        """Every cut of a segment, and its neurons set apart; a residual stage is cut where the search began so."""
        program = self._twin.programs[segment.stage]
        is_whole = segment.stop - segment.start == len(program.steps)
        if self._cuttable[segment.stage] and (program.is_chain or not is_whole):
            for cut in range(segment.start + 1, segment.stop):
                if program.ends(segment.start, cut) and program.ends(cut, segment.stop):
                    halves = replace(segment, stop=cut), replace(segment, start=cut)
                    yield [self._inherited(half) for half in halves]
        if segment.inner == 0 and self._twin.can_part(segment):
            yield [replace(segment, inner=1)]

    def _temporal(self, segment: Segment) -> Iterator[list[Segment]]:
        """Twice as many pieces of time for a segment that may have them, or for its neurons."""
        if in_time(self._twin.module(segment)):
            longer = replace(segment, chunks=2 * segment.chunks)
        elif self._twin.can_part(segment):
            longer = replace(segment, inner=2 * max(1, segment.inner))
        else:
            return
        if max(longer.inner, longer.chunks) <= self._steps:
            yield [longer]

    def _inherited(self, half: Segment) -> Segment:
        """One side of a cut, in pieces of time as before it where that still makes sense."""
        module = self._twin.module(half)
        if in_time(module):
            return replace(half, chunks=max(half.chunks, half.inner), inner=0)
        return replace(half, chunks=1, inner=half.inner if neurons(module) else 0)

    def _restored(self, layout: Layout, peak: int) -> tuple[Layout, int]:
        """Segments in descending forward time back to plain, where the peak does not rise."""
        limit, steps = self._twin.peak(layout)[0], [layout]
        for segment in sorted(layout, key=self._twin.seconds, reverse=True):
            plain = replace(segment, plain=True, chunks=1, inner=0)
            new = [plain if other == segment else other for other in steps[-1]]
            found = self._twin.peak(new)[0]
            if found <= limit:
                limit = found
                steps.append(new)
        # The sum of the parts is not the step to the byte: take as many as the whole step bears; mostly all.
        low, high, best = 0, len(steps) - 1, (layout, peak)
        middle = high
        while low < high:
            found = self._twin.exact(steps[middle])
            if found <= peak:
                low, best = middle, (steps[middle], found)
            else:
                high = middle - 1
            middle = (low + high + 1) // 2
        return best


def _changed(layout: Layout, where: int, new: list[Segment]) -> Layout:
    return [*layout[:where], *new, *layout[where + 1 :]]


def _bytes(found: tuple[int, int, list[Segment]]) -> int:
    return found[0]
