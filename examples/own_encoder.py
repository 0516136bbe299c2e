"""An encoder from outside the package: train it on a small world, and ask it about a task.

    python own_encoder.py              # a minute on one core
    python own_encoder.py --steps 10   # a trial

`ColourCounts` counts which colour becomes which in the demos, cell by cell. A study names it as any
other encoder. To make one part of the project, with its contract tests, see CONTRIBUTING.md.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

import etrm
from etrm.arc.grid import PAD, VOCAB_SIZE
from etrm.config.schema import option
from etrm.data.batch import Batch
from etrm.models.encoders.base import Encoded
from etrm.models.encoders.shared import Encoder, EncoderOptions, Expand

STUDY = """
study: own_encoder
results: {folder}/results
data:
  sources:
    seen: {{kind: world, rules: [recolour], size: [1, 6], part: training, tasks: {tasks}}}
    unseen: {{kind: world, rules: [recolour], size: [1, 6], part: held_out, tasks: 20}}
  training: [seen]
  evaluation: [unseen]
experiments:
  mine:
    episodes: {{canvas: [[1, 6]], queries: test_pairs, translate: false}}
    model: {{width: 64, heads: 4, context_tokens: 12, H_cycles: 1, L_cycles: 2}}
    context: {{source: colour_counts, output_scale: 1.0}}
    decoder: {{init: null}}
    halting: {{max_steps: 1}}
    train: {{batch_size: 32, lr: 1.0e-3, warmup_steps: 50, ema_decay: 0.99, probe_every: null}}
    stages: {{overfit: {{tasks: null, steps: {steps}}}}}
tracking: {{wandb: disabled}}
"""


@dataclass(frozen=True)
class ColourCountsOptions(EncoderOptions):
    """`source: colour_counts`: every field here is a key of `context`."""

    source: str = option("the source", "colour_counts", choices=("colour_counts",))


class ColourCounts(Encoder):
    """Shares of the colours that each colour becomes, [B, V, V], mapped to tokens [B, P, D]."""

    Options = ColourCountsOptions

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.expand = Expand(VOCAB_SIZE**2, self.model)

    def forward(self, batch: Batch, state: Tensor | None) -> Encoded:
        """Read the demos of a batch; never its query or labels."""
        real = (batch.demo_mask[..., None] & (batch.demo_inputs != PAD))[..., None]  # [B, K, S, 1]
        before = F.one_hot(batch.demo_inputs, VOCAB_SIZE) * real  # [B, K, S, V]
        after = F.one_hot(batch.demo_outputs, VOCAB_SIZE)
        counts = before.flatten(1, 2).mT.float() @ after.flatten(1, 2).float()  # [B, V, V]
        shares = counts / counts.sum(dim=-1, keepdim=True).clamp(min=1)
        return self.finish(self.expand(shares.flatten(1)))


# The code of this file is part of the key of the runs that it trains: edit it, and they run again.
etrm.register_encoder("colour_counts", "own_encoder:ColourCounts")


def main() -> None:
    """Train the encoder, and print its answer to a task."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", default="own_encoder", help="of the study: %(default)s")
    parser.add_argument("--steps", type=int, default=500, help="%(default)s by default")
    parser.add_argument("--tasks", type=int, default=2000, help="of training: %(default)s")
    given = parser.parse_args()
    folder = Path(given.folder)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "study.yaml"
    file.write_text(STUDY.format(**vars(given)), encoding="utf-8")
    study = etrm.read_study(file)
    etrm.prepare(study)
    run = etrm.train(study, "mine", "overfit")
    print(etrm.metrics(run)[["step", "train/lm_loss", "train/exact_accuracy"]].tail(3))
    rows = [[1, 2, 3, 4, 4, 1], [4, 4, 1, 2, 3, 3]]
    demos = [([row], [[cell + 4 for cell in row]]) for row in rows]
    etrm.load(run).solve(etrm.make_task(demos, [[[3, 1, 2, 2, 4, 1]]])).show()  # 7 5 6 6 8 5


if __name__ == "__main__":
    main()
