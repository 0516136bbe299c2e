"""Print the lowest declared version of each dependency, as requirements, and the test tools."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("pytest", "hypothesis", "setuptools")


def lowest(dependencies: list[str]) -> list[str]:
    """Return each `name>=version` as `name==version`."""
    return [re.sub(r">=\s*", "==", text) for text in dependencies]


if __name__ == "__main__":
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    tools = [line for line in pinned if line.split("==")[0] in TOOLS]
    print("\n".join([*lowest(project["dependencies"]), *tools]))
