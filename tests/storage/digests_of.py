"""Digests of texts by whatever Python runs this: its argument is the reader, its input is JSON."""

import json
import runpy
import sys


def taken(reader, texts):
    """Return the digest of each (kind, text), and the names in it, by the module `reader`."""
    found = []
    for kind, text in texts:
        if kind == "whole":
            found.append(list(reader["read_code"](text)))
            continue
        code = reader["read_definitions"](text, lambda name: name.startswith("etrm.models"))
        pieces = code.definitions.items()
        found.append([[n, [[d.digest, sorted(d.names)] for d in each]] for n, each in pieces])
    return found


if __name__ == "__main__":
    print(json.dumps(taken(runpy.run_path(sys.argv[1]), json.load(sys.stdin))))
