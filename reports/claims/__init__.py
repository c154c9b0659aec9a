"""What the papers claim beside what was predicted and measured here, with a verdict on each."""

from reports.claims.judge import Judged, Side, judge
from reports.claims.loading import Claim, load

__all__ = ["Claim", "Judged", "Side", "judge", "load"]
