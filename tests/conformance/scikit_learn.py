"""scikit-learn's own tests of model selection and ensembles, with every `Parallel` inside on a cluster.

`python -m tests.conformance.scikit_learn [FILE...]` runs it alone.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path
from typing import Final

from cluster import Client, LocalCluster
from tests.conformance.joblib import Reached
from tests.conformance.outcome import Outcome
from tests.conformance.run import main_of_suite
from tests.conformance.with_pytest import run_file

_SKLEARN: Final = Path(str(importlib.util.find_spec("sklearn").origin)).parent  # type: ignore[union-attr]
_FOLDERS: Final = ("model_selection", "ensemble")

# Tried with loky for all files but those of stacking and voting.
SIDE_EFFECTS = "expects what the calls did to objects, warnings or output of this very process; loky fails it too"
NOT_PICKLED = "an argument cannot be pickled; fails with loky too"
LEFT_OUT: Final[dict[str, dict[str, str]]] = {
    "ensemble/tests/test_bagging.py": {
        r"test_metadata_routing_with_dynamic_method_selection\[ConsumingClassifier"
        r"(WithoutPredictProba-predict-predict|WithoutPredictLogProba-predict_log_proba-predict_proba"
        r"|WithOnlyPredict-predict_log_proba-predict)\]": SIDE_EFFECTS,
    },
    "ensemble/tests/test_stacking.py": {r"test_metadata_routing_for_stacking_estimators\[.*": SIDE_EFFECTS},
    "ensemble/tests/test_voting.py": {
        r"test_voting_verbose\[.*": SIDE_EFFECTS,
        r"test_metadata_routing_for_voting_estimators\[.*": SIDE_EFFECTS,
    },
    "model_selection/tests/test_validation.py": {
        r"test_(cross_validate|cross_val_score)_failing_scorer\[.*": SIDE_EFFECTS,
        r"test_cross_val_predict\[.*": SIDE_EFFECTS,
        r"test_cross_val_score_score_func": SIDE_EFFECTS,
        r"test_cross_validate_invalid_scoring_param": SIDE_EFFECTS,
        r"test_learning_curve_exploit_incremental_learning_routing": SIDE_EFFECTS,
        r"test_validation_functions_routing\[.*-extra_args[01235]\]": SIDE_EFFECTS,
    },
    "model_selection/tests/test_search.py": {
        r"test_grid_search_cv_splits_consistency": NOT_PICKLED,
        r"test_searchcv_raise_warning_with_non_finite_score\[.*": SIDE_EFFECTS,
        r"test_search_cv_verbose_3\[.*": SIDE_EFFECTS,
        r"test_multi_metric_search_forwards_metadata\[.*": SIDE_EFFECTS,
        r"test_search_callbacks_receive_search_instance\[.*": SIDE_EFFECTS,
        r"test_search_callbacks_with_partial_fit_failures": NOT_PICKLED,
    },
    "model_selection/tests/test_successive_halving.py": {
        r"test_cv_results\[.*": SIDE_EFFECTS,
        r"test_base_estimator_inputs\[.*": SIDE_EFFECTS,
    },
}
"""By file, by pattern of a test's name, the reason why it is not run."""


def files() -> list[str]:
    """Every file of tests of these parts."""
    found = [path for folder in _FOLDERS for path in (_SKLEARN / folder).glob("tests/test_*.py")]
    return sorted(str(path.relative_to(_SKLEARN)) for path in found)


def run(file: str) -> Outcome:
    """Run one file."""
    # The fixtures stand in a file above the folder of the tests.
    os.environ["PYTEST_ADDOPTS"] = f"--confcutdir={_SKLEARN}"
    reasons = LEFT_OUT.get(file, {})
    reached = Reached()

    def left_out(test: str) -> str | None:
        return next((reason for pattern, reason in reasons.items() if re.fullmatch(pattern, test)), None)

    with LocalCluster(n_workers=1, slots=2) as local, Client(local, show_output=False) as client, client.joblib():
        return run_file(_SKLEARN / file, left_out, lambda: reached.calls)


if __name__ == "__main__":
    main_of_suite(sys.modules[__name__])
