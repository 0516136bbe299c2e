"""The README's recipe for a new encoder, followed: a file, a line, and the contract holds it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]

ENCODER = '''
"""The mean of all cells, by one linear map."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from etrm.config.schema import option
from etrm.models.encoders.base import Encoded
from etrm.models.encoders.shared import Encoder, EncoderOptions, Expand, mean_over
from etrm.models.encoders.pairs import PairTokens
from etrm.data.batch import Batch


@dataclass(frozen=True)
class AverageOptions(EncoderOptions):
    """`source: average`: blocks over the cells of a pair, and means of all."""

    source: str = option("the source", "average", choices=("average",))
    sharpness: int = option("factor of the mean", 1, ge=1)


class AverageEncoder(Encoder):
    """Cells of a pair → their mean → mean over pairs → P × D."""

    Options: ClassVar[type] = AverageOptions
    order_invariant: ClassVar[bool] = True

    def __init__(self, options, model, num_puzzles):
        super().__init__(options, model, num_puzzles)
        self.pairs = PairTokens(options.pairing, options.width, options.heads, model)
        self.blocks = self.block()
        self.expand = Expand(options.width, model)

    def forward(self, batch: Batch, state: Tensor | None) -> Encoded:
        def encode(pairs, rows):
            x = self.blocks(pairs.tokens, pairs.rotary, pairs.mask)
            return mean_over(x, pairs.real)

        mean = mean_over(self.pairs.vectors(batch, encode), batch.demo_mask)
        return self.finish(self.expand(SHARPNESS * mean + 0.1))
'''


def contract(folder: Path) -> str:
    """What the contract tests say of the new encoder, in a process of its own."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "average"]
    run = subprocess.run(
        [*command, "tests/models/encoders/test_contract.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{folder}:{folder}/tests"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return run.stdout[-4000:]


def test_a_new_encoder_is_a_file_and_a_line(tmp_path: Path) -> None:
    for name in ("etrm", "tests", "config"):
        shutil.copytree(
            ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.png")
        )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    registry = tmp_path / "etrm/config/registry.py"
    line = '    "average": "etrm.models.encoders.average:AverageEncoder",\n}\n'
    registry.write_text(registry.read_text().replace("}\n", line, 1))
    file = tmp_path / "etrm/models/encoders/average.py"
    # As it should not be: `layers` and `sharpness` are options that nothing reads.
    file.write_text(ENCODER.lstrip().replace("SHARPNESS", "1"))
    said = contract(tmp_path)
    assert "test_every_option_changes_the_weights_or_the_output[average-sharpness=2]" in said, said
    assert "test_every_option_changes_the_weights_or_the_output[average-layers=2]" in said, said
    # As it should be.
    good = ENCODER.lstrip().replace("SHARPNESS", "self.options.sharpness")
    blocks = "nn.ModuleList(self.block() for _ in range(options.layers))"
    good = good.replace("self.block()", blocks)
    good = good.replace("from torch import Tensor\n", "from torch import Tensor, nn\n")
    good = good.replace(
        "x = self.blocks(pairs.tokens, pairs.rotary, pairs.mask)",
        "x = pairs.tokens\n"
        "            for block in self.blocks:\n"
        "                x = block(x, pairs.rotary, pairs.mask)",
    )
    file.write_text(good)
    said = contract(tmp_path)
    assert " passed" in said, said
    assert "failed" not in said, said
