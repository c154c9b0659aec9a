"""What the papers claim, one TOML file a paper; read by the reports, see docs/claims.md."""
