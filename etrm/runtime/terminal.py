"""The terminal: its width, who writes to it, and stand-ins for characters that it cannot print."""

from __future__ import annotations

import codecs
import os
import shutil
import sys
import textwrap
import unicodedata

HANDLER = "etrm.stand_ins"
WIDTH = 80  # columns, where the output is no terminal
# The stream that the display of a study writes to, as `device:inode`, for the jobs it watches.
DISPLAY = "ETRM_DISPLAY"
# None of them is a quotation mark or a backslash: JSON stays JSON.
STAND_INS = {
    **dict.fromkeys("‑–—−─", "-"),
    **{"≈": "~", "\N{NO-BREAK SPACE}": " "},
    **{"→": "->", "←": "<-", "≤": "<=", "≥": ">=", "±": "+-"},
    **{"…": "...", "×": "x", "·": "*", "√": "sqrt", "°": " deg", "†": "+"},
    **{"β": "beta", "ε": "epsilon", "μ": "mu", "σ": "sigma", "Σ": "sum"},
    **{"✓": "yes", "✗": "no", "✅": "yes", "❌": "no", "⚠": "!"},
    "\N{VARIATION SELECTOR-16}": "",  # of ⚠️
}


def width(otherwise: int = WIDTH) -> int:
    """Return the columns of the terminal, or of `COLUMNS`, or else `otherwise`."""
    return shutil.get_terminal_size(fallback=(otherwise, 40)).columns


def fit(text: str, columns: int, later: str = "  ") -> list[str]:
    """Return the lines of a text, wrapped between words; paths and names stay whole."""
    return [
        part
        for line in text.splitlines()
        for part in textwrap.wrap(
            line,
            columns,
            subsequent_indent=later + " " * (len(line) - len(line.lstrip())),
            break_long_words=False,
            break_on_hyphens=False,
        )
        or [""]
    ]


def cut(text: str, width: int) -> str:
    """Shorten a name in its middle: names differ at their end as well as at their beginning."""
    end = (width - 1) // 2
    return text if len(text) <= width else f"{text[: width - 1 - end]}…{text[len(text) - end :]}"


def take() -> None:
    """Claim stderr for the display of a study: its jobs then write to their logs alone."""
    os.environ[DISPLAY] = _identity()


def is_taken() -> bool:
    """Return whether stderr is the stream of a display, which prints this job's log."""
    return bool(os.environ.get(DISPLAY)) and os.environ[DISPLAY] == _identity()


def _identity() -> str:
    try:
        found = os.fstat(2)
    except OSError:  # closed
        return ""
    return f"{found.st_dev}:{found.st_ino}"


def use_stand_ins() -> None:
    """Let stdout and stderr print ASCII stand-ins for characters that their encoding lacks.

    Where it lacks nothing, as UTF-8, nothing changes.
    """
    codecs.register_error(HANDLER, _replaced)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not one that a caller has put in its place
            stream.reconfigure(errors=HANDLER)


def stand_in(character: str) -> str:
    """Return ASCII for a character: a sign that looks alike, the letter without accents, or `?`."""
    if character in STAND_INS:
        return STAND_INS[character]
    parts = unicodedata.normalize("NFKD", character)
    return "".join(part for part in parts if part.isascii() and part.isalnum()) or "?"


def _replaced(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(stand_in, error.object[error.start : error.end])), error.end
