"""What the benchmarks' tables say of a goal."""

from __future__ import annotations

from benchmarks.case import Figure, Goal
from benchmarks.report import judge


def test_a_goal_is_judged_by_how_many_times_better_ours_is() -> None:
    moved, goal = Figure("moved", "MB"), Goal(times_dask=2)
    assert judge(moved, goal, 10.0, 30.0).endswith("Dask: met (3)")
    assert judge(moved, goal, 20.0, 30.0).endswith("Dask: **missed** (1.5)")
    assert judge(Figure("rate", "1/s", higher_is_better=True), goal, 30.0, 10.0).endswith("Dask: met (3)")


def test_nothing_at_all_is_better_than_any_times_less() -> None:
    assert judge(Figure("moved", "MB"), Goal(times_dask=2), 0.0, 30.0).endswith("Dask: met (nothing at all)")
