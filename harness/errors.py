"""Errors that a user can cause and mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(Exception):
    """Bad input: a suite file, an option, a folder. One line that names the place and the allowed values.

    The command line ends with exit code 2.
    """


def unknown(kind: str, given: str, allowed: Iterable[str], where: str) -> UsageError:
    """The error for a name that does not exist, with the nearest one that does.

    Args:
        kind: what was looked for, e.g. ``"method"``.
        given: the name as written.
        allowed: all names that exist.
        where: file and key, or command-line option.
    """
    names = sorted(allowed)
    by_case = {name.lower(): name for name in names}
    near = difflib.get_close_matches(given.lower(), by_case, n=1)
    hint = f" Did you mean {by_case[near[0]]!r}?" if near else ""
    return UsageError(f"{where}: unknown {kind} {given!r}.{hint} Allowed: {', '.join(names) or '(none)'}")
