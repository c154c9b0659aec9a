"""``python -m harness`` is ``snnbench``."""

from harness.cli import main

main()
