"""The README's recipe for a new encoder, followed: a file, a line, and the contract holds it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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


# As it should not be: `layers` and `sharpness` are options that nothing reads.
BAD = ENCODER.lstrip().replace("SHARPNESS", "1")
GOOD = ENCODER.lstrip()
for old, new in {
    "SHARPNESS": "self.options.sharpness",
    "self.block()": "nn.ModuleList(self.block() for _ in range(options.layers))",
    "import Tensor\n": "import Tensor, nn\n",
    "x = self.blocks(pairs.tokens, pairs.rotary, pairs.mask)": """x = pairs.tokens
            for block in self.blocks:
                x = block(x, pairs.rotary, pairs.mask)""",
}.items():
    GOOD = GOOD.replace(old, new)

PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
CONTRACT = (*PYTEST, "-k", "average", "tests/models/encoders/test_contract.py")
# Tests of shipped files, among them that the study of encoders has every registered one.
SHIPPED = (
    *(f"tests/config/test_config_{name}.py" for name in ("reference", "schema", "shipped")),
    "tests/config/test_config_files.py::test_the_files_that_come_with_the_project",
    "tests/test_docs.py::test_the_code_map_is_up_to_date",
)


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a process of its own, with the code of that folder."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{folder}:{folder}/tests"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the project with the line of the recipe; the file is still to come."""
    folder = tmp_path_factory.mktemp("recipe")
    for name in ("etrm", "tests", "config", "slurm", "docs"):
        shutil.copytree(
            ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.png")
        )
    shutil.copy(ROOT / "pyproject.toml", folder)
    registry = folder / "etrm/config/registry.py"
    line = '    "average": "etrm.models.encoders.average:AverageEncoder",\n}\n'
    registry.write_text(registry.read_text().replace("}\n", line, 1))
    return folder


def test_the_contract_finds_options_that_nothing_reads(copy: Path) -> None:
    (copy / "etrm/models/encoders/average.py").write_text(BAD)
    found = python(copy, *CONTRACT).stdout
    for option in ("sharpness", "layers"):
        name = f"test_every_option_changes_the_weights_or_the_output[average-{option}=2]"
        assert name in found, found


def test_a_new_encoder_is_a_file_and_a_line(copy: Path) -> None:
    (copy / "etrm/models/encoders/average.py").write_text(GOOD)
    # As `make docs-generated` does.
    python(copy, "-m", "etrm.config.reference", "config/README.md")
    python(copy, "-m", "etrm.config.json_schema", "config/schema.json")
    python(copy, "docs/code_map.py", "docs/code-map.md")
    for command in (CONTRACT, (*PYTEST, *SHIPPED)):
        run = python(copy, *command)
        # By its exit code: 5 where no test was found. Its warnings may have any word in them.
        assert run.returncode == 0, run.stdout + run.stderr
