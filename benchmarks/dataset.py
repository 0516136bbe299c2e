"""Time, memory and disk space of the two tables of the paper study.

`python -m benchmarks.dataset [--variants 1000]` builds them for ARC-AGI-1's 800 tasks, with
ConceptARC's 160 where its Kaggle-form files are given or are in the folder that the environment
variable ETRM_ARC names. The official builder, for comparison: about 400 s, 17 GB, 7.5 GB.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.clock import PeakMemory
from benchmarks.mix import NoTasks, paper_sources
from etrm.config.data import DataConfig
from etrm.data.prepare import prepare_augmentations, prepare_tasks
from etrm.storage.files import write_json_atomic

BUDGET = {"seconds": 30.0, "peak MB": 2000.0, "MB on disk": 60.0}


@dataclass(frozen=True)
class DatasetCost:
    """Time, memory and disk of building the tables."""

    tasks_seconds: float
    augment_seconds: float
    tasks_bytes: int
    augment_bytes: int
    peak_bytes: int  # of this process


def main() -> int:
    """Print the measurements and whether they keep the budget; return the exit code."""
    arguments = _parse_arguments()
    try:
        cost = build(_paper_data(arguments))
    except NoTasks as error:
        print(error, file=sys.stderr)
        return 2
    if arguments.out:
        write_json_atomic(arguments.out, asdict(cost))
    print(f"tasks: {cost.tasks_seconds:.2f} s, {cost.tasks_bytes / 1e6:.2f} MB")
    print(f"augment: {cost.augment_seconds:.2f} s, {cost.augment_bytes / 1e6:.2f} MB")
    measured = {
        "seconds": cost.tasks_seconds + cost.augment_seconds,
        "peak MB": cost.peak_bytes / 1e6,
        "MB on disk": (cost.tasks_bytes + cost.augment_bytes) / 1e6,
    }
    for name, budget in BUDGET.items():
        verdict = "within" if measured[name] <= budget else "OVER"
        print(f"{name}: {measured[name]:.1f}, {verdict} the budget of {budget:g}")
    return 0 if all(measured[name] <= budget for name, budget in BUDGET.items()) else 1


def build(data: DataConfig) -> DatasetCost:
    """Build both tables in a folder that is removed afterwards, saying what is in them."""
    with tempfile.TemporaryDirectory() as folder:
        tasks, augmentations = Path(folder, "tasks.parquet"), Path(folder, "augmentations.parquet")
        start = time.perf_counter()
        print(prepare_tasks(data, tasks))
        middle = time.perf_counter()
        print(prepare_augmentations(tasks, augmentations, data.variants, data.seed))
        end = time.perf_counter()
        sizes = [file.stat().st_size for file in (tasks, augmentations)]
    peak = PeakMemory.of_process()
    return DatasetCost(middle - start, end - middle, sizes[0], sizes[1], peak)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--variants", type=int, default=1000, help="per task (default 1000)")
    parser.add_argument("--concept-challenges", help="ConceptARC's challenges in Kaggle form")
    parser.add_argument("--concept-solutions", help="ConceptARC's solutions in Kaggle form")
    parser.add_argument("--out", type=Path, help="write the measurements as JSON, too")
    return parser.parse_args()


def _paper_data(arguments: argparse.Namespace) -> DataConfig:
    given = arguments.concept_challenges, arguments.concept_solutions
    sources = paper_sources(None if given[0] is None else given)
    if "concept" not in sources:
        print("without ConceptARC: no --concept-challenges and no ETRM_ARC", file=sys.stderr)
    training = ["arc1_training"] + ["concept"] * ("concept" in sources)
    return DataConfig(
        sources=sources,
        training=tuple(training),
        evaluation=("arc1_evaluation",),
        variants=arguments.variants,
    )


if __name__ == "__main__":
    sys.exit(main())
