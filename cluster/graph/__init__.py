"""Graphs of tasks before anything runs: what depends on what, and in which order it is best submitted."""
