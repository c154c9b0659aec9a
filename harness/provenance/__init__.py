"""Where a number comes from: code, packages, machine, settings."""

from harness.provenance.collecting import collect, fingerprint

__all__ = ["collect", "fingerprint"]
