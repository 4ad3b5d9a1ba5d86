"""One run of one case on one system, in this process: `python -m benchmarks.child CASE SYSTEM SIZE OUTPUT`.

The measurement goes into a file, since a system may print what it likes.
"""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import asdict
from pathlib import Path

from benchmarks.peers import SYSTEMS
from benchmarks.registry import CASES


def main(case_name: str, system_name: str, size: str, output: str) -> None:
    warnings.simplefilter("ignore")
    case, system = CASES[case_name], SYSTEMS[system_name]
    if case.opens_system:
        system.open()
    # Written before the system is closed, which after an abandoned map can take longer than the run.
    measurement = case.measure(system, int(size))
    Path(output).write_text(json.dumps(asdict(measurement)))
    if case.opens_system:
        system.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
