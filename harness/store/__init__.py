"""The result store: a folder of records that survives kills, damage and two writers at once."""

from harness.store.files import (
    CONFLICTS,
    DAMAGED,
    SAFE,
    Damaged,
    Store,
    Stored,
    Summary,
    is_later,
    new_run_id,
    uncollected,
)

__all__ = [
    "CONFLICTS", "DAMAGED", "SAFE", "Damaged", "Store", "Stored", "Summary", "is_later", "new_run_id", "uncollected",
]  # fmt: skip
