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
ENCODINGS = ("latin-1", "ascii")


def etrm(folder: Path, encoding: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding}
    command = [sys.executable, "-m", "etrm", *arguments]
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False)
    output, errors = (text.decode(encoding) for text in (run.stdout, run.stderr))
    return subprocess.CompletedProcess(command, run.returncode, output, errors)


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


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_summary_of_a_study(folder: Path, encoding: str) -> None:
    run = etrm(folder, encoding, "summary", "--configfile", "study.yaml")
    assert run.returncode == 0, run.stderr
    assert "passed   etrm, seed 0: exact match 95.0% >= 90%" in run.stdout
    assert max(map(len, run.stdout.splitlines())) <= 80
    assert "results/s/index.html" in run.stdout
    assert "----------" in run.stdout  # the rules of the table
    assert "?" not in run.stdout


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_help(tmp_path: Path, encoding: str) -> None:
    run = etrm(tmp_path, encoding, "run", "--help")
    assert run.returncode == 0, run.stderr
    assert "cpu, cuda, cuda:1, ...;" in " ".join(run.stdout.split())


def test_errors_of_the_configuration(folder: Path) -> None:
    (folder / "bad.yaml").write_text("extends: study.yaml\nthreads: 0\n", encoding="utf-8")
    run = etrm(folder, "ascii", "summary", "--configfile", "bad.yaml")
    assert run.returncode == 1
    assert "threads: found 0, expected an integer >= 1" in run.stderr


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
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", out)
    assert cli.main(["plan"]) == 0
    assert out.buffer.getvalue().decode(encoding) == shown + "\n"  # type: ignore[attr-defined]


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
