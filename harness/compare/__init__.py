"""Two result stores beside each other: what changed, what got worse, what is missing."""

from harness.compare.comparing import Comparison, Row, compare
from harness.compare.measures import METRICS, Delta, Limits

__all__ = ["METRICS", "Comparison", "Delta", "Limits", "Row", "compare"]
