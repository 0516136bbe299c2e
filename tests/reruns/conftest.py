"""Copies of the project and warm processes, shared with the tests of the workflow."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "workflow"))
