"""Benchmarks: our figures beside each peer's. README.md says what is measured and how to run them."""
