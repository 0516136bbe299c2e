"""The one place that decides which file the path of first weights means.

A path is that of a run folder, of a checkpoint file under any name, or of a folder that holds one
checkpoint. The plan, the workflow and training all ask here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from etrm.config.parents import SUFFIXES
from etrm.config.text import first_few
from etrm.errors import UserError

WEIGHTS, RECORD = "model.safetensors", "run.json"  # of a run folder
ENCODER = ".encoder"  # before the suffix of an exported encoder, which is no decoder
OFFICIAL_NAME = re.compile(r"step_\d+")  # official TRM gives its files no suffix


class ParentError(UserError):
    """First weights from outside the study are missing, or could be one of several files."""


@dataclass(frozen=True)
class FirstWeights:
    """The file of first weights, there or not, and the run folder that it belongs to."""

    file: Path
    run: Path | None  # None for a checkpoint of unknown origin

    @property
    def files(self) -> list[Path]:
        """Return all files that are read."""
        return [self.file] if self.run is None else [self.file, self.run / RECORD]


def find_first_weights(path: Path) -> FirstWeights:
    """Return the first weights at `path`.

    Raises `ParentError` for a folder that is no run folder and holds no checkpoint or several.
    """
    if not path.is_dir():
        own = path.name == WEIGHTS and (path.parent / RECORD).is_file()
        return FirstWeights(path, path.parent if own else None)
    if (path / RECORD).is_file() or (path / WEIGHTS).is_file():
        return FirstWeights(path / WEIGHTS, path)
    found = sorted(filter(_is_checkpoint, path.iterdir()))
    if len(found) == 1:
        return FirstWeights(found[0], None)
    names = ", ".join(first_few([file.name for file in found], 8))
    raise ParentError(
        f"{path}: found {f'several checkpoints ({names})' if found else 'no checkpoint'}, expected"
        f" weights to start from: a run folder ({RECORD}, {WEIGHTS}), or a folder with one file"
        f" step_… or *{', *'.join(SUFFIXES)}{': name one of them' if found else ''}"
    )


def _is_checkpoint(path: Path) -> bool:
    if path.suffix in SUFFIXES:
        return path.is_file() and Path(path.stem).suffix != ENCODER
    return OFFICIAL_NAME.fullmatch(path.name) is not None and path.is_file()
