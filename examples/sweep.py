"""Compare several values of a key: a sweep over learning rates on a small world, from Python.

    python sweep.py               # some minutes on one core
    python sweep.py --steps 10    # a trial

In a checkout, `snakemake --configfile sweep/study.yaml --cores 2` runs the same file of the study
on all cores, or on a cluster, with figures and tables.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

import etrm

STUDY = """
study: sweep
results: {folder}/results
data:
  sources:
    seen: {{kind: world, rules: [recolour], size: [1, 6], part: training, tasks: {tasks}}}
    unseen: {{kind: world, rules: [recolour], size: [1, 6], part: held_out, tasks: 20}}
  training: [seen]
  evaluation: [unseen]
defaults:
  episodes: {{canvas: [[1, 6]], queries: test_pairs, translate: false}}
  model: {{width: 32, heads: 4, context_tokens: 4, H_cycles: 1, L_cycles: 2}}
  context: {{source: in_context, width: 32, heads: 4}}
  decoder: {{init: null}}
  halting: {{max_steps: 1}}
  train: {{batch_size: 32, warmup_steps: 50, ema_decay: 0.99, probe_every: null}}
  stages: {{overfit: {{tasks: null, steps: {steps}, eval_episodes: 200}}}}
experiments:
  rate:
    sweep: {{lr: {{key: train.lr, values: [3.0e-4, 1.0e-3, 3.0e-3]}}}}
tracking: {{wandb: disabled}}
"""


def main() -> None:
    """Train one run for each value, and print their last metrics side by side."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", default="sweep", help="of the study: %(default)s")
    parser.add_argument("--steps", type=int, default=600, help="%(default)s by default")
    parser.add_argument("--tasks", type=int, default=2000, help="of training: %(default)s")
    given = parser.parse_args()
    folder = Path(given.folder)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "study.yaml"
    file.write_text(STUDY.format(**vars(given)), encoding="utf-8")
    study = etrm.read_study(file)
    etrm.prepare(study)
    rows = {}
    for name, experiment in study.experiments.items():
        run = etrm.train(study, name, "overfit")  # its first stage is enough to compare
        rows[name] = {"lr": experiment.train.lr, **etrm.metrics(run).ffill().iloc[-1]}
    columns = ["lr", "step", "train/lm_loss", "all.lm_loss", "all.exact_accuracy"]
    print(pd.DataFrame(rows).T[columns].to_string())


if __name__ == "__main__":
    main()
