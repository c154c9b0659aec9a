"""Code blocks of a Markdown page, and the session that a page describes."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

_BLOCK = re.compile(r"(?:^In `([^`\n]+)`:\n\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LENIENT = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Args:
        language: behind the fence.
        text: its lines.
        path: the file that it is the content of, where the line before says so.
    """

    language: str
    text: str
    path: str | None


def blocks(page: Path) -> list[Block]:
    """All code blocks of a page, in order."""
    found = [Block(m[2], m[3], m[1]) for m in _BLOCK.finditer(page.read_text("utf-8"))]
    assert 2 * len(found) == sum(line.startswith("```") for line in page.read_text("utf-8").splitlines())
    return found


@dataclass(frozen=True)
class Step:
    """A command of a page, what it printed, and what the page shows (None: nothing)."""

    command: str
    printed: str
    shown: str | None

    @property
    def as_shown(self) -> bool:
        """Whether it printed what the page shows; ``...`` stands for anything, spaces for spaces."""
        return self.shown is None or doctest.OutputChecker().check_output(self.shown, self.printed, _LENIENT)


class Session:
    """A reader who does what a page says, in a folder of his own; packages are installed into a folder beside it.

    Args:
        folder: where to work.
    """

    def __init__(self, folder: Path) -> None:
        self.work, site = folder / "work", folder / "site"
        self.work.mkdir()
        self.environment = os.environ | {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)]),
            "PYTHONSAFEPATH": "1",  # what is imported is what was installed, not the folder that it was made in
            "PIP_TARGET": str(site),
            "PIP_NO_INDEX": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "SNNBENCH_DATA": str(folder / "data"),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
        }

    def follow(self, page: list[Block]) -> list[Step]:
        """Write the page's files, run its commands, and keep what they print."""
        steps: list[Step] = []
        for block, after in zip(page, [*page[1:], None], strict=True):
            if block.path is not None:
                (self.work / block.path).parent.mkdir(parents=True, exist_ok=True)
                (self.work / block.path).write_text(block.text, "utf-8")
            elif block.language in ("sh", "python"):
                shown = after.text if after is not None and after.language == "text" else None
                steps.append(Step(block.text, self.run(block), shown))
        return steps

    def run(self, block: Block) -> str:
        """What a block of shell commands or of Python prints; it has to succeed."""
        return self._run(["bash", "-ec", block.text]) if block.language == "sh" else self.python(block.text)

    def python(self, code: str) -> str:
        """What a program prints; it has to succeed."""
        return self._run([sys.executable, "-c", code])

    def _run(self, command: list[str]) -> str:
        done = subprocess.run(
            command, cwd=self.work, env=self.environment, capture_output=True, text=True, timeout=240, check=False
        )
        assert done.returncode == 0, f"{command[-1]}\n{done.stdout}\n{done.stderr}"
        return done.stdout
