"""Show pages of the repository that stand outside docs/ as pages of the site (see mkdocs.yml)."""

from __future__ import annotations

import re
from pathlib import Path
from posixpath import normpath
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "configuration.md": Path("config/README.md"),
    "contributing.md": Path("CONTRIBUTING.md"),
    "changelog.md": Path("CHANGELOG.md"),
}


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Return the text of a page, its links turned to pages of the site, or to text."""
    source = PAGES.get(page.file.src_uri)
    if source is None:
        return markdown
    shown = {str(path): name for name, path in PAGES.items()}

    def link(match: re.Match[str]) -> str:
        text, target = match.groups()
        path, anchor, fragment = target.partition("#")
        if not path or "://" in path:
            return match[0]
        name = normpath((source.parent / path).as_posix())
        name = shown.get(name, name.removeprefix("docs/") if name.startswith("docs/") else "")
        return f"[{text}]({name}{anchor}{fragment})" if name else text

    text = (ROOT / source).read_text(encoding="utf-8")
    return re.sub(r"\[([^\]]*)\]\(([^)\s]+)\)", link, text)
