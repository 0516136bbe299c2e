"""Environments without this package, and stand-ins for the tools that make and enter them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

SITE = Path(sysconfig.get_path("purelib"))
OURS = ("__editable__", "etrm")

# What Snakemake asks of conda, and answers of the same form. Creating an environment takes the
# packages of this one, without `etrm`.
CONDA = """#!{python}
import json, sys
sys.path.insert(0, {here!r})
from pathlib import Path
from deployments import bare_environment
import yaml

base = Path(__file__).resolve().parents[1]
with open(base / "calls", "a") as file:
    print(*sys.argv[1:], file=file)
match sys.argv[1:]:
    case ["info", "--json"]:
        print(json.dumps({{"conda_prefix": str(base), "platform": "linux-64"}}))
    case ["--version"]:
        print("conda 25.5.1")
    case ["config", "--get", "channel_priority", "--json"]:
        print(json.dumps({{"get": {{"channel_priority": "strict"}}}}))
    case ["env", "create", "--quiet", "--no-default-packages", "--file", file, "--prefix", prefix]:
        asked = yaml.safe_load(Path(file).read_text())
        assert set(asked) == {{"name", "channels", "dependencies"}}, asked
        bare_environment(Path(prefix))
        (Path(prefix) / "conda-meta").mkdir()
    case ["clean", "-y", "--tarballs"]:
        pass
    case other:
        sys.exit(f"not known: {{other}}")
"""
ACTIVATE = 'export CONDA_PREFIX="$1" PATH="$1/bin:$PATH"\n'

# `apptainer exec` runs the command outside of any image, with the Python that the image would have.
APPTAINER = """#!{python}
import os, sys
from pathlib import Path

WITH_VALUE = ("--home", "--bind", "--pwd")
arguments = sys.argv[1:]
with open(Path(__file__).resolve().parents[1] / "calls", "a") as file:
    print(*[argument.replace("\\n", " ") for argument in arguments], file=file)
if arguments == ["--version"]:
    sys.exit(print("apptainer version 1.4.1"))
assert arguments.pop(0) == "exec", sys.argv
options = {{}}
while arguments[0].startswith("--"):
    name = arguments.pop(0)
    options.setdefault(name, []).append(arguments.pop(0) if name in WITH_VALUE else None)
image, *command = arguments
if not os.path.exists(image):
    sys.exit(f"FATAL: could not open image {{image}}")
assert options["--home"] == [os.getcwd()], "the working directory is what a container sees"
os.environ["APPTAINER_CONTAINER"] = os.path.abspath(image)
os.environ["PATH"] = {bin!r} + os.pathsep + os.environ["PATH"]
os.execvp(command[0], command)
"""


def bare_environment(prefix: Path) -> Path:
    """The packages of this environment without `etrm`, by links, in an environment of its own."""
    venv.create(prefix, symlinks=True)
    [site] = prefix.glob("lib/python*/site-packages")
    for entry in SITE.iterdir():
        if not entry.name.startswith(OURS) and entry.name != "__pycache__":
            (site / entry.name).symlink_to(entry)
    script = prefix / "bin" / "snakemake"
    installed = Path(sys.executable).with_name("snakemake").read_text().split("\n", 1)[1]
    script.write_text(f"#!{prefix}/bin/python\n{installed}")
    script.chmod(0o755)
    return prefix


def stand_in(folder: Path, name: str, text: str, **values: object) -> Path:
    """An executable in `folder/bin`; the folder is returned."""
    path = folder / "bin" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    here = str(Path(__file__).parent)
    path.write_text(text.format(python=sys.executable, here=here, **values))
    path.chmod(0o755)
    return folder


def conda(folder: Path) -> Path:
    """A conda, to be put on the path; `calls` in its folder has what it was asked."""
    stand_in(folder, "conda", CONDA)
    (folder / "bin" / "activate").write_text(ACTIVATE)
    return folder


def apptainer(folder: Path, environment: Path) -> Path:
    """An Apptainer, to be put on the path, whose images hold the packages of `environment`."""
    return stand_in(folder, "apptainer", APPTAINER, bin=str(environment / "bin"))


def without_network() -> list[str]:
    """The command before another one that then has no network; empty where that is not allowed."""
    if shutil.which("unshare") is None:
        return []
    for options in (["-n"], ["-r", "-n"]):
        command = ["unshare", *options, "--"]
        if subprocess.run([*command, "true"], capture_output=True).returncode == 0:
            return command
    return []
