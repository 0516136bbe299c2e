"""The README's recipe for a new encoder, followed: a file, a line, and the contract holds it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import test_contract as contract

from etrm.config.registry import CONTEXT_SOURCES

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

# As `make docs-generated` does, then the contract, and the tests of shipped files (among them that
# the study of encoders has every registered one) but for those that an encoder cannot break.
FOLLOWED = """
import runpy, sys
import pytest
for page, module in {pages}.items():
    sys.argv[1:] = [page]
    runpy.run_module(module, run_name="__main__")
sys.exit(pytest.main(["-v", "-p", "no:cacheprovider", "-k", {names}, *{files}]))
"""
PAGES = {
    "config/README.md": "etrm.config.reference",
    "config/schema.json": "etrm.config.json_schema",
    "docs/code-map.md": "code_map",
}
OTHERS = "test_contract or resolved_form or shipped_studies or prints_the_page"
NAMES = f"average or encoders.yaml or not ({OTHERS})"
FILES = (
    "tests/models/encoders/test_contract.py",
    *(f"tests/config/test_config_{name}.py" for name in ("reference", "schema", "shipped")),
    "tests/config/test_config_files.py::test_the_files_that_come_with_the_project",
    "tests/test_docs.py::test_the_code_map_is_up_to_date",
)


def test_the_contract_finds_options_that_nothing_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "unread.py").write_text(BAD)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(CONTEXT_SOURCES, "average", "unread:AverageEncoder")
    unread = set()
    for option in set(contract.variations("average")) - contract.OF_LOSSES:
        for changes in contract.variations("average")[option]:
            try:
                contract.test_every_option_changes_the_weights_or_the_output("average", changes)
            except AssertionError:
                unread.add(option)
    assert unread == {"sharpness", "layers"}


def test_a_new_encoder_is_a_file_and_a_line(tmp_path: Path) -> None:
    """In a copy of the project, whose files keep their times and so their compiled modules."""
    for name in ("etrm", "tests", "config", "slurm", "docs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.png"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "etrm/models/encoders/average.py").write_text(GOOD)
    registry = tmp_path / "etrm/config/registry.py"
    line = '    "average": "etrm.models.encoders.average:AverageEncoder",\n}\n'
    registry.write_text(registry.read_text().replace("}\n", line, 1))
    path = os.pathsep.join(str(tmp_path / name) for name in (".", "tests", "docs"))
    run = subprocess.run(
        [sys.executable, "-c", FOLLOWED.format(pages=PAGES, names=repr(NAMES), files=FILES)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    # By its exit code: its warnings may have any word in them.
    assert run.returncode == 0, run.stdout + run.stderr
    assert "test_a_task_of_two_pairs_trains[average] PASSED" in run.stdout
