"""What a run says: lines that stay, a live table, and how long the rest takes."""

import io
import threading
from collections import Counter

import pytest
from rich.console import Console

from harness.run.progress import LiveProgress, Pace, PlainProgress, duration, progress
from tests.harness import cells


def console(terminal=False):
    return Console(file=io.StringIO(), width=160, force_terminal=terminal, color_system=None, legacy_windows=False)


def plain(total=57, estimates=None):
    where = console()
    return PlainProgress(total, Pace(total, 1, estimates or {}), where), where.file


def job(tmp_path, seed=0):
    return cells.job(tmp_path, run_id=f"r{seed}", seed=seed)


def test_one_line_a_finished_cell(tmp_path):
    shown, said = plain()
    for number in range(12):
        shown.finished(job(tmp_path, number).spec, "ok", 3.21)
    last = said.getvalue().splitlines()[-1]
    assert last == "[12/57] ok 3.2 s m | net | digits | T=4 N=2 | memory"
    assert shown.counts == Counter(ok=12)


def test_a_failure_says_why_and_markup_in_it_is_text(tmp_path):
    shown, said = plain()
    shown.finished(job(tmp_path).spec, "oom", 1.0, "memory: [bold]no[/bold] memory [12 GiB]")
    assert said.getvalue().endswith(": memory: [bold]no[/bold] memory [12 GiB]\n")


def test_a_cell_of_another_run_has_no_time_here(tmp_path):
    shown, said = plain()
    shown.finished(job(tmp_path).spec, "ok", None)
    assert "ok elsewhere m |" in said.getvalue()


def test_long_lines_are_not_wrapped_in_a_file(tmp_path):
    shown, said = plain()
    shown.finished(job(tmp_path).spec, "error", 1.0, "x" * 500)
    assert said.getvalue().count("\n") == 1


def test_a_terminal_gets_the_live_table():
    assert isinstance(progress(1, Pace(1, 1, {}), console(terminal=True)), LiveProgress)
    assert type(progress(1, Pace(1, 1, {}), console())) is PlainProgress


def test_the_live_table_shows_running_cells_their_phase_and_the_totals(tmp_path):
    where = console(terminal=True)
    with LiveProgress(3, Pace(3, 1, {}), where) as shown:
        shown.started(job(tmp_path, 0))
        shown.started(job(tmp_path, 1))
        shown.phase(job(tmp_path, 1), "train")
        table = text(shown)
        assert table.count("m | net | digits") == 2
        assert "start" in table
        assert "train" in table
        assert "time left: unknown" in table
        shown.finished(job(tmp_path, 0).spec, "ok", 60.0, run_id="r0")
        table = text(shown)
        assert table.count("m | net | digits") == 1
        assert "1/3 cells" in table
        assert "ok 1" in table
        assert "about 2 min left" in table
    assert "[1/3] ok 60.0 s m | net | digits" in where.file.getvalue()


def test_nothing_draws_by_a_timer():
    """A thread that draws would run beside the timed phases."""
    before = set(threading.enumerate())
    with LiveProgress(3, Pace(3, 1, {}), console(terminal=True)):
        assert set(threading.enumerate()) <= before


def text(shown):
    where = console()
    where.print(shown.render())
    return where.file.getvalue()


def test_the_pace_uses_what_is_known_of_each_cell():
    pace = Pace(4, 2, {"a": 10.0, "b": 30.0})
    assert pace.left_s() is None, "two cells are unknown, and nothing has been measured"
    pace.done("a", 12.0)
    assert pace.left_s() == (30.0 + 2 * 12.0) / 2
    pace.done("c", 18.0)
    assert pace.left_s() == (30.0 + 15.0) / 2
    pace.done("b", None)
    assert pace.left_s() == 15.0 / 2
    pace.done("d", 1.0)
    assert pace.left_s() == 0.0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min"), (12000, "3 h 20 min"), (7230, "2 h 00 min")],
)
def test_durations_in_words(seconds, words):
    assert duration(seconds) == words
