"""Output on terminals whose encoding lacks some of the characters that we print."""

from __future__ import annotations

import codecs
import sys
import unicodedata

HANDLER = "etrm.stand_ins"
# None of them is a quotation mark or a backslash: JSON stays JSON.
STAND_INS = {
    **dict.fromkeys("–—−─", "-"),
    **{"→": "->", "←": "<-", "≤": "<=", "≥": ">=", "±": "+-"},
    **{"…": "...", "×": "x", "·": "*", "√": "sqrt", "°": " deg", "†": "+"},
    **{"β": "beta", "ε": "epsilon", "μ": "mu", "σ": "sigma", "Σ": "sum"},
    **{"✓": "yes", "✗": "no", "✅": "yes", "❌": "no", "⚠": "!"},
    "\N{VARIATION SELECTOR-16}": "",  # of ⚠️
}


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
