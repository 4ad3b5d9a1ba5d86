"""A grid search of scikit-learn: many fits of some milliseconds, through joblib."""

from __future__ import annotations

from benchmarks.case import Case, Figure, Measurement, Meter, check_equal
from benchmarks.systems import PARALLEL, System

SAMPLES, FEATURES = 700, 20
FOLDS = 10


def measure_search(system: System, size: int) -> Measurement:
    """`GridSearchCV.fit` of `size` fits of about 5 ms, after one that has started and loaded everything."""
    from sklearn.datasets import make_classification
    from sklearn.model_selection import GridSearchCV
    from sklearn.tree import DecisionTreeClassifier

    features, classes = make_classification(SAMPLES, FEATURES, random_state=0)
    # The parameter bounds nothing here, so that all fits take the same time.
    leaves = {"max_leaf_nodes": range(SAMPLES, SAMPLES + size // FOLDS)}
    search = GridSearchCV(DecisionTreeClassifier(random_state=0), leaves, cv=FOLDS, refit=False)
    with system.parallel():
        search.fit(features, classes)
        with Meter(system) as meter:
            search.fit(features, classes)
    check_equal(len(search.cv_results_["params"]) * FOLDS, size, "the number of fits")
    return meter.measurement(size, size, {"fits": size / meter.seconds})


CASES = (
    Case(
        name="joblib",
        title="GridSearchCV of fits of about 5 ms, warm",
        sizes=(200,),
        ladder=(50, 100, 200),
        figures=(Figure("fits", "fits/s", higher_is_better=True),),
        measure=measure_search,
        needs=frozenset({PARALLEL}),
    ),
)
