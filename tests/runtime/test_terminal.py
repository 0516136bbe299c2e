"""Commands on terminals, and files in locales, that do not have every character."""

from __future__ import annotations

import ast
import io
import os
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import fake
import pytest
import yaml

from etrm import cli
from etrm.config.load import read_study
from etrm.runtime.terminal import stand_in
from etrm.study.layout import Layout, Run

ROOT = Path(__file__).resolve().parents[2]


class Terminal:
    """A terminal of 80 columns in an encoding, to which commands write."""

    def __init__(self, encoding: str, patch: pytest.MonkeyPatch) -> None:
        self.files = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
        for name, file in zip(("stdout", "stderr"), self.files, strict=True):
            patch.setattr(sys, name, file)
        patch.setenv("COLUMNS", "80")

    def text(self) -> str:
        """Return all that was written, errors at the end."""
        for file in self.files:
            file.flush()
        buffers = [(file.buffer, file.encoding) for file in self.files]
        return "".join(buffer.getvalue().decode(encoding) for buffer, encoding in buffers)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with two runs of one experiment, one of which passed its gate."""
    folder = tmp_path_factory.mktemp("study")
    document = {
        "study": "s",
        "experiments": {"etrm": {"context": {"source": "standard"}, "seeds": [0, 1]}},
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    layout = Layout(read_study(folder / "study.yaml"))
    for seed, reached in enumerate((0.95, 0.5)):
        made = fake.run(folder / "made", experiment="etrm", seed=seed, reached=reached)
        target = folder / layout.folder(Run("etrm", "overfit", seed))
        target.parent.mkdir(parents=True, exist_ok=True)
        (folder / "made" / f"etrm-overfit-{seed}").rename(target)
        assert made.stage == "overfit"
    return folder


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_commands(folder: Path, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    summary = Terminal(encoding, monkeypatch)
    assert cli.main(["summary", "--configfile", "study.yaml"]) == 0
    assert "passed   etrm, seed 0: exact match 95.0% >= 90%" in summary.text()
    assert max(map(len, summary.text().splitlines())) <= 80
    assert "results/s/index.html" in summary.text()
    assert "----------" in summary.text()  # the rules of the table
    assert "?" not in summary.text()
    words = Terminal(encoding, monkeypatch)
    with pytest.raises(SystemExit, match="0"):
        cli.main(["run", "--help"])
    assert "cpu, cuda, cuda:1, ...;" in " ".join(words.text().split())
    Path("bad.yaml").write_text("extends: study.yaml\nthreads: 0\n", encoding="utf-8")
    errors = Terminal(encoding, monkeypatch)
    assert cli.main(["summary", "--configfile", "bad.yaml"]) == 1
    assert "threads: found 0, expected an integer >= 1" in errors.text()


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", "a - b -> c >= 1, 2 x 3 +- 4 --- ... e ? ?"),
        ("latin-1", "a - b -> c >= 1, 2 × 3 ± 4 --- ... é ? ?"),
        ("cp437", "a - b -> c ≥ 1, 2 x 3 ± 4 ─── ... é ? ?"),
        ("utf-8", "a – b → c ≥ 1, 2 × 3 ± 4 ─── … é 日 ?"),
    ],
)
def test_a_plan(encoding: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = "a – b → c ≥ 1, 2 × 3 ± 4 ─── … é 日 \udcff"  # the last of a file name
    monkeypatch.setattr(cli, "plan_text", lambda given: screen)
    terminal = Terminal(encoding, monkeypatch)
    assert cli.main(["plan"]) == 0
    assert terminal.text() == shown + "\n"


def texts(path: Path) -> Iterator[str]:
    """Text that a module may print: all that is no docstring."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lone = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in lone:
            yield node.value


def test_every_character_that_we_print_has_a_stand_in() -> None:
    files = [*(ROOT / "etrm").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
    signs = {sign for file in files for text in texts(file) for sign in text if not sign.isascii()}
    assert {"–", "→", "≥", "…"} <= signs
    for sign in (sign for sign in signs if unicodedata.category(sign) != "Cs"):
        assert stand_in(sign) != "?", f"{sign} ({unicodedata.name(sign)})"
        assert stand_in(sign).isascii()
        assert not set(stand_in(sign)) & set('"\\')


@pytest.mark.parametrize("character", ["日", "\udcff", "＂", "＼", "\u202e"])
def test_other_characters_become_question_marks(character: str) -> None:
    assert stand_in(character) == "?"


# --- files ---

SCRIPT = """
import locale, sys, types, warnings
from pathlib import Path

warnings.filterwarnings("error", category=EncodingWarning, module="etrm|__main__")
assert locale.getencoding() == "ANSI_X3.4-1968"
from etrm import cli

def script(name, output, **more):
    global snakemake
    snakemake = types.SimpleNamespace(log=["job.log"], output=[output], **more)
    path = Path(sys.argv[1]) / "workflow/scripts" / name
    exec(compile(path.read_text(encoding="utf-8"), "__main__", "exec"), globals())

of = types.SimpleNamespace
script("config.py", "config.yaml", config={"resolved": "é: →\\n"})
runs = [str(path) for path in Path("results").rglob("*") if path.is_file()]
script("record.py", "records/etrm.md", wildcards=of(experiment="etrm"), input=of(runs=runs),
       params=of(goal="é → ≥", baseline=None))
assert cli.main(["summary", "--configfile", "study.yaml"]) == 0
cli.main(["doctor", "--configfile", "study.yaml"])
"""


def test_files_are_utf8_in_every_locale(folder: Path) -> None:
    """From a Python that takes text for ASCII, where each file opened as such is an error."""
    (folder / "script.py").write_text(SCRIPT, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment |= {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-X", "utf8=0", "-X", "warn_default_encoding", "script.py"]
    run = subprocess.run(
        [*command, str(ROOT)], cwd=folder, env=environment, capture_output=True, check=False
    )
    assert run.returncode == 0, run.stderr.decode()
    assert b"exact match 95.0% >= 90%" in run.stdout
    assert yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")) == {"é": "→"}
    record = (folder / "records/etrm.md").read_text(encoding="utf-8")
    assert "é → ≥" in record
    assert "✅" in record
