"""Pages say what is there: links lead somewhere, and no module is missing from the maps."""

from __future__ import annotations

import json
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny import make_run, make_tasks, write_study

from etrm import cli
from etrm.config.execution import TrackingConfig
from etrm.config.load import load_study
from etrm.training.run import train_run

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "docs"))
import code_map  # noqa: E402

PAGES = sorted(
    path
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "slurm/README.md"]
    if path.name != "LOG.md"
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path = target.partition("#")[0]
        if path and "://" not in path:
            assert (page.parent / path).exists(), f"{page.name} links to {target}"


STUDIES = [
    pytest.param(block, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, block in enumerate(re.findall(r"```yaml\n(.*?)```", page.read_text("utf-8"), re.S))
]


@pytest.mark.parametrize("block", STUDIES)
def test_studies_on_the_pages_are_valid(block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each as a difference from the mini study."""
    monkeypatch.chdir(ROOT)
    load_study({"extends": "config/config.yaml", **yaml.safe_load(block)})


def test_the_code_map_is_up_to_date() -> None:
    """`make docs-generated` writes it."""
    assert (ROOT / "docs/code-map.md").read_text(encoding="utf-8") == code_map.render()


def test_pages_name_every_room_in_order() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "etrm/__init__.py"]
    rooms = {path.parent.name for path in (ROOT / "etrm").glob("*/__init__.py")}
    assert rooms == set(code_map.ORDER)
    listed = r",\s+(?:and\s+)?".join(f"`{room}`" for room in code_map.ORDER[:-1])
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert re.search(rf"{listed}(,| and)\s+`{code_map.ORDER[-1]}`", text), page.name
    assert len(pages[0].read_text(encoding="utf-8").splitlines()) <= 100


FOLDERS = "etrm|docs|config|tests|workflow|benchmarks|examples|slurm|profiles|envs"
NOT_IN_GIT = {"slurm/site.yaml"}  # a site's own


def quoted(page: Path, pattern: str) -> set[str]:
    """Return the texts in backticks that are wholly of a form, but for names in capitals."""
    found = set(re.findall(rf"`({pattern})`", page.read_text(encoding="utf-8")))
    return {each for each in found if not re.search("/[A-Z]+[._]", each)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_and_modules_that_are_named_exist(page: Path) -> None:
    paths = quoted(page, rf"(?:{FOLDERS})/[\w./-]*") - NOT_IN_GIT
    assert {path for path in paths if not (ROOT / path).exists()} == set()
    for name in quoted(page, r"(?:etrm|benchmarks)(?:\.\w+)+"):
        pkgutil.resolve_name(name)  # raises for one that is not there


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_definitions_are_where_pages_say(page: Path) -> None:
    """Of `NAME` in `file.py`, and `NAME` (`file.py`."""
    text = page.read_text(encoding="utf-8")
    for name, path in re.findall(r"`([\w.]+)`\s+(?:in |of |\()`(etrm/[\w/]+\.py)`", text):
        module = path.removesuffix(".py").replace("/", ".")
        found = pkgutil.resolve_name(f"{module}:{name}")
        assert getattr(found, "__module__", module) == module, f"{name} is not defined in {path}"


def commands_of(page: Path, program: str) -> list[str]:
    """Return the command lines of a program that a page names, in text and in blocks of shell."""
    text = page.read_text(encoding="utf-8")
    lines = [
        line for block in re.findall(r"```sh\n(.*?)```", text, re.S) for line in block.split("\n")
    ]
    found = [*lines, *re.findall(r"`([^`\n]+)`", text)]
    return [each.partition("#")[0] for each in found if re.match(rf"{program} [a-z]", each)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_and_options_that_are_named_exist(page: Path) -> None:
    [kinds] = [each for each in cli._parser()._actions if isinstance(each.choices, dict)]
    assert isinstance(kinds.choices, dict)
    for line in commands_of(page, "etrm"):
        parser = kinds.choices[line.split()[1]]
        unknown = set(re.findall(r"(?<=\s)--[a-z-]+", line)) - set(parser._option_string_actions)
        assert unknown == set(), line
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert {line.split()[1] for line in commands_of(page, "make")} <= set(targets)


def test_a_wheel_works_from_any_folder(tmp_path: Path) -> None:
    """Also from one that holds a checkout, whose package it must not take.

    It answers tasks from a run folder alone.
    """
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def run(*command: str | Path, folder: Path = tmp_path) -> str:
        found = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert found.returncode == 0, found.stderr
        return found.stdout

    pip = ["-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    run(sys.executable, *build, "-w", tmp_path, ROOT)
    [wheel] = tmp_path.glob("etrm-*.whl")
    binaries = tmp_path / "environment/bin"
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "environment")
    there = ["--python", binaries / "python"]
    run(sys.executable, *pip, *there, "install", "--no-deps", "--no-index", wheel)
    # Dependencies come from here; the checkout does not, since its .pth file is not followed.
    [packages] = (tmp_path / "environment").glob("lib/python*/site-packages")
    ours = next(path for path in sys.path if path.endswith("site-packages"))
    (packages / "dependencies.pth").write_text(ours + "\n", encoding="utf-8")
    assert "evaluate" in run(binaries / "etrm", "--help", folder=ROOT)
    imported = run(binaries / "python", "-P", "-c", "import etrm; print(etrm)", folder=ROOT)
    assert str(packages) in imported
    paths = write_study(tmp_path / "study", make_tasks(2), make_tasks(1, seed=9, prefix="held_out"))
    train_run(make_run(train={"steps": 1}), paths, TrackingConfig(wandb="disabled"), device="cpu")
    (tmp_path / "elsewhere").mkdir()
    task = {"train": [{"input": [[1]], "output": [[2]]}], "test": [{"input": [[1]]}]}
    (tmp_path / "elsewhere/t.json").write_text(json.dumps(task), encoding="utf-8")
    ask = (binaries / "etrm", "solve", "t.json", "--run", paths.out, "--device", "cpu")
    assert "test 1" in run(*ask, folder=tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere/solved/t.png").is_file()
    assert (packages / "etrm/py.typed").is_file()
    assert (packages / "etrm/config/reference.md").is_file()
