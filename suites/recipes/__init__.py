"""Published training recipes, one TOML file each; :mod:`harness.suite.recipes` reads them."""
