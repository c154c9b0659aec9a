"""What is measured: suites (``*.toml``), models, data sets and claims. Importing it is cheap; reading data is not."""
