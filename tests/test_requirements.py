"""One set of versions everywhere, all that is imported among them, and no package index named."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
PIN = re.compile(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.!+]+)")
# Import names that differ from the name of their distribution.
DISTRIBUTIONS = {"yaml": "pyyaml", "sklearn": "scikit-learn", "markdown_it": "markdown-it-py"}
OURS = {"etrm", "benchmarks"}
RECIPES = ("envs/etrm.def", "envs/Dockerfile")
CONFIGURING = (
    *("requirements.txt", "pyproject.toml", "Makefile", "envs/etrm.yaml", ".ci/run"),
    "envs/generators.txt",
    *RECIPES,
)
# The index decides whether torch is a build for CPUs or for GPUs. The latter asks for the libraries
# of its CUDA version, each at one version that torch itself names, so torch's pin holds them too.
# A list of them here would be right for one of the builds only.
CUDA = re.compile(r"nvidia-.+|cuda-.+|triton|pytorch-triton.*")
# Settings that name an index or a mirror, and addresses of any kind.
INDEX = re.compile(
    r"--?(extra-)?index-url|--find-links|--trusted-host|PIP_INDEX|_PROXY\b|https?://|file://",
    re.IGNORECASE,
)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(lines: list[str]) -> dict[str, str]:
    """Version by normalised name; every line must pin exactly one."""
    found = {}
    for line in lines:
        match = PIN.fullmatch(line.strip())
        assert match, f"{line!r} pins no exact version"
        assert normal(match[1]) not in found, f"{match[1]} is pinned twice"
        found[normal(match[1])] = match[2]
    return found


def requirements() -> dict[str, str]:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return pins([line for line in lines if line.strip() and not line.startswith("#")])


def conda() -> dict[str, object]:
    return yaml.safe_load((ROOT / "envs" / "etrm.yaml").read_text())


def declared() -> Iterator[tuple[str, str]]:
    """The requirements of pyproject.toml: distribution and lower bound, empty without one."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lists = [project["project"]["dependencies"], project["build-system"]["requires"]]
    lists += project["project"]["optional-dependencies"].values()
    for requirement in (r for each in lists for r in each):
        match = re.fullmatch(r"([A-Za-z0-9._-]+)(?:>=([0-9.]+))?", requirement)
        assert match, f"{requirement!r} is no lower bound"
        yield normal(match[1]), match[2] or ""


def release(version: str) -> tuple[int, ...]:
    parts = [int(part) for part in re.match(r"[0-9.]+", version)[0].strip(".").split(".")]
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts)


def unmet(pinned: dict[str, str], requires: Callable[[str], list[str]]) -> list[str]:
    """What pinned distributions ask for, on this platform, and the pins do not give."""
    extras = {name: {""} for name in pinned}
    found, todo = [], list(pinned)
    while todo:
        name = todo.pop()
        for asked in map(Requirement, requires(name)):
            marker, needed = asked.marker, normal(asked.name)
            if marker and not any(marker.evaluate({"extra": extra}) for extra in extras[name]):
                continue
            if needed not in pinned:
                if name != "torch" or not CUDA.fullmatch(needed):
                    found.append(f"{name} asks for {asked}: not pinned")
            elif not asked.specifier.contains(pinned[needed], prereleases=True):
                found.append(f"{name} asks for {asked}: pinned at {pinned[needed]}")
            elif not asked.extras <= extras[needed]:
                extras[needed] |= asked.extras
                todo.append(needed)
    return sorted(set(found))


def imports(path: Path) -> set[str]:
    """Top-level names of all modules imported, the lazy imports too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


def smk_imports(path: Path) -> set[str]:
    text = path.read_text(encoding="utf-8")
    return set(re.findall(r"^(?:from|import) (\w+)", text, flags=re.MULTILINE))


def third_party() -> dict[str, list[str]]:
    """Distributions that the code imports, with the files that do."""
    found: dict[str, list[str]] = {}
    python = [
        p for folder in ("etrm", "workflow", "benchmarks") for p in (ROOT / folder).rglob("*.py")
    ]
    rules = [ROOT / "Snakefile", *(ROOT / "workflow").rglob("*.smk")]
    names = [(p, imports(p)) for p in python] + [(p, smk_imports(p)) for p in rules]
    for path, modules in names:
        for name in modules - OURS - set(sys.stdlib_module_names):
            distribution = DISTRIBUTIONS.get(name, normal(name))
            found.setdefault(distribution, []).append(str(path.relative_to(ROOT)))
    return found


def tracked() -> list[Path]:
    """The files of the repository; outside a checkout, those that configure an environment."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others"]
    done = subprocess.run([*command, "--exclude-standard"], capture_output=True, text=True)
    if done.returncode == 0:
        files = [ROOT / name for name in done.stdout.split("\0") if name]
        return [path for path in files if path.is_file()]
    return [ROOT / name for name in CONFIGURING]


def test_requirements_and_conda_pin_the_same_versions() -> None:
    assert set(conda()) == {"name", "channels", "dependencies"}, "all that conda reads"
    *others, pip = conda()["dependencies"]
    assert others == ["python=3.11", "pip"]
    assert pins(pip["pip"]) == requirements()


def test_the_library_that_generates_is_pinned_and_not_among_ours() -> None:
    lines = (ROOT / "envs/generators.txt").read_text(encoding="utf-8").splitlines()
    locked = pins([line for line in lines if line and not line.startswith("#")])
    assert set(locked) == {"reasoning-gym"}
    assert not set(locked) & set(requirements())


@pytest.mark.parametrize("name", RECIPES)
def test_an_image_holds_what_is_pinned_git_and_a_compiler(name: str) -> None:
    lines = (ROOT / name).read_text().splitlines()
    text = "\n".join(line.strip() for line in lines if not line.startswith("#"))
    python, lock = conda()["dependencies"][0].split("=")[1], "/opt/etrm/requirements.txt"
    assert re.findall(r"^from:? (.+)", text, re.MULTILINE | re.IGNORECASE) == [
        f"python:{python}-slim"
    ]
    assert re.search(rf"^(COPY )?requirements\.txt {lock}$", text, re.MULTILINE)
    # Nothing else is installed, by whatever tool.
    assert sorted(re.findall(r"[\w-]+ install .*?(?= \\|$)", text, re.MULTILINE)) == [
        "apt-get install --yes --no-install-recommends git g++",
        f"pip install --no-cache-dir --requirement {lock}",
    ]


def test_python_is_the_one_that_the_project_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["requires-python"] == ">=3.11"
    assert sys.version_info >= (3, 11)


def test_pins_satisfy_the_lower_bounds() -> None:
    pinned = requirements()
    for name, bound in declared():
        assert name in pinned, f"pyproject.toml asks for {name}, requirements.txt does not pin it"
        if bound:
            assert release(pinned[name]) >= release(bound), f"{name}: {pinned[name]} < {bound}"


@pytest.mark.parametrize(
    ("older", "newer"), [("2.9", "2.13.0"), ("1.26", "2.4"), ("9.20", "9.27.1"), ("6", "6.0.3")]
)
def test_versions_compare_as_numbers(older: str, newer: str) -> None:
    assert release(older) < release(newer)
    assert release("6") == release("6.0.0")


def test_everything_that_is_imported_is_pinned_and_declared() -> None:
    used, pinned, asked = third_party(), requirements(), {name for name, _ in declared()}
    assert {"torch", "numpy", "snakemake", "pyyaml"} <= set(used), "found too few imports"
    assert {name: files for name, files in used.items() if name not in pinned} == {}
    assert {name: files for name, files in used.items() if name not in asked} == {}


def test_the_installed_versions_are_the_pinned_ones() -> None:
    # Of the environment itself: setuptools, once something compiles, puts its own on the path.
    here = metadata.distributions(path=[sysconfig.get_path("purelib")])
    installed = {normal(d.metadata["Name"]): d.version for d in here}
    pinned = requirements()
    differ = {
        name: f"{installed[name]} installed, {version} pinned"
        for name, version in pinned.items()
        if name in installed and installed[name].split("+")[0] != version
    }
    assert differ == {}


def test_everything_that_is_asked_for_is_pinned() -> None:
    pinned = requirements()

    def requires(name: str) -> list[str]:
        try:
            return metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # an environment may leave out the tests' tools
            return []

    known = [name for name in pinned if requires(name)]
    assert len(known) > 20, "found too few packages that ask for others"
    assert unmet(pinned, requires) == []


@pytest.mark.parametrize(
    ("asked", "problems"),
    [
        ({"a": ["b>=1"]}, []),
        ({"a": ["b>=3"]}, ["a asks for b>=3: pinned at 2.0"]),
        ({"a": ["c"]}, ["a asks for c: not pinned"]),
        ({"a": ["c; sys_platform == 'nowhere'", "c; extra == 'x'"]}, []),
        ({"a": ["b[x]"], "b": ["c; extra == 'x'"]}, ['b asks for c; extra == "x": not pinned']),
        ({"torch": ["nvidia-nccl==2", "cuda-toolkit[cublas]==13", "triton==3"]}, []),
        (
            {"torch": ["c"], "a": ["triton"]},
            ["a asks for triton: not pinned", "torch asks for c: not pinned"],
        ),
    ],
)
def test_what_is_not_pinned_is_found(asked: dict[str, list[str]], problems: list[str]) -> None:
    pinned = {"a": "1.0", "b": "2.0", "torch": "2.13.0"}
    assert unmet(pinned, lambda name: asked.get(name, [])) == problems


def test_environment_files_name_no_index_or_host() -> None:
    for name in CONFIGURING:
        text = (ROOT / name).read_text(encoding="utf-8")
        text = re.sub(r"(?ms)^\[project\.urls\].*?^$", "", text)  # papers and repositories
        found = INDEX.search(text)
        assert found is None, f"{name} names {found[0]!r}"
    assert conda()["channels"] == ["conda-forge"]


def test_no_file_sets_an_index() -> None:
    setting = re.compile(r"--?(extra-)?index-url|trusted-host|PIP_INDEX_URL", re.IGNORECASE)
    suffixes = {".png", ".pdf", ".safetensors", ".npz", ".parquet"}
    here = Path(__file__).resolve()
    for path in tracked():
        if path.suffix not in suffixes and path.resolve() != here:
            found = setting.search(path.read_text(encoding="utf-8", errors="replace"))
            assert found is None, f"{path.relative_to(ROOT)} sets {found[0]!r}"
    assert not [p for p in tracked() if p.name in ("pip.conf", ".pypirc", ".condarc")]
