"""Data sets; files are read in ``prepare`` and ``load`` only."""
