"""The scheduler's decisions: pure, driven by messages and a clock that is an argument."""
