"""Links from a report to the records behind it: relative, so that a folder of stores and reports can be moved."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote


def relative(target: Path, base: Path) -> str:
    """A relative path from one folder to a file, with forward slashes.

    Args:
        target: the file.
        base: the folder that the link is in.
    """
    return Path(os.path.relpath(target.resolve(), base.resolve())).as_posix()


def href(target: Path, base: Path) -> str:
    """The same as a URL reference: percent-encoded, and never mistaken for a scheme.

    Args:
        target: the file.
        base: the folder of the page.
    """
    link = quote(relative(target, base))
    return link if link.startswith(".") else f"./{link}"
