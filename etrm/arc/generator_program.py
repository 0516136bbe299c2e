"""The program that generates pairs: `python generator_program.py FOLDER`, in a process of its own.

FOLDER holds reasoning-gym, whose other requirements are not ours. Every line of the standard input
is a request as JSON, every line of the output its answer (`answer`); the program ends with its
input. It imports the standard library, and of reasoning-gym only the rules: by their modules, since
the packages around them import the whole library.

A grid is a text here: its rows, of one digit a cell, joined by `/`.
"""

from __future__ import annotations

import json
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from random import Random
from types import FrameType, ModuleType
from typing import Any

Grid = tuple[tuple[int, ...], ...]
Draw = Callable[[Random], tuple[Grid, Grid]]

DRAWS_PER_PAIR = 20  # at most: a rule may have few pairs
SECONDS_PER_DRAW = 60  # of computing; by far more than any draw has taken


class RejectedError(Exception):
    """A pair that is drawn again; the message is the reason."""


def main() -> None:
    """Answer requests until there are no more."""
    _stand_in(Path(sys.argv[1]))
    signal.signal(signal.SIGVTALRM, _give_up)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


def _stand_in(folder: Path) -> None:
    """Make the modules of the rules importable without the packages that they are in."""
    for name in ("reasoning_gym", "reasoning_gym.arc"):
        package = ModuleType(name)
        package.__path__ = [str(folder.joinpath(*name.split(".")))]
        sys.modules[name] = package


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Return `{rules: [...]}`, or where the request names a `rule` its pairs and their counts.

    - `pairs`: [[input, output], ...], as many as asked for, or fewer after 20 draws for each
    - `draws` in all, and `rejected`: the number of those rejected, by reason
    - `disagrees`: the number of `original` pairs that the rule's verifier does not reproduce
    """
    rules = RULES[request["kind"]](request)
    if "rule" not in request:
        return {"rules": sorted(rules)}
    draw, verify = rules[request["rule"]]
    original = [(parse(a), parse(b)) for a, b in request.get("original", ())]
    wrong = sum(_applied(verify, given) != expected for given, expected in original)
    return {**draw_pairs(draw, request), "rule": request["rule"], "disagrees": wrong}


def draw_pairs(draw: Draw, request: dict[str, Any]) -> dict[str, Any]:
    """Draw pairs of a rule: each by a generator of its own, so that a smaller number is a prefix.

    As in RE-ARC, no input comes twice, and none equals its output.
    """
    pairs: list[tuple[str, str]] = []
    seen: set[Grid] = set()
    rejected: Counter[str] = Counter()
    draws = 0
    while len(pairs) < request["pairs"] and draws < DRAWS_PER_PAIR * request["pairs"]:
        seed = f"{request['seed']}/{request['kind']}/{request['rule']}/{draws}"
        draws += 1
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS_PER_DRAW)
        try:
            given, expected = draw(Random(seed))
            _check(given, expected, seen, request["max_side"])
        except RejectedError as error:
            rejected[str(error)] += 1
            continue
        except Exception as error:  # generators of the library fail now and then
            rejected[type(error).__name__] += 1
            continue
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        seen.add(given)
        pairs.append((show(given), show(expected)))
    return {"pairs": pairs, "draws": draws, "rejected": dict(sorted(rejected.items()))}


def _check(given: Grid, expected: Grid, seen: set[Grid], max_side: int) -> None:
    for grid in (given, expected):
        if not grid or not grid[0] or {len(row) for row in grid} != {len(grid[0])}:
            raise RejectedError("no grid")
        if not {cell for row in grid for cell in row} <= set(range(10)):
            raise RejectedError("no colours")
        if max(len(grid), len(grid[0])) > max_side:
            raise RejectedError("too large")
    if given == expected:
        raise RejectedError("nothing changes")
    if given in seen:
        raise RejectedError("drawn before")


def _applied(verify: Callable[[Grid], Grid] | None, given: Grid) -> Grid | None:
    try:
        return None if verify is None else verify(given)
    except Exception:  # a verifier that fails does not reproduce the output
        return None


def _give_up(signum: int, frame: FrameType | None) -> None:
    raise RejectedError(f"over {SECONDS_PER_DRAW} s")


def parse(text: str) -> Grid:
    """Return the grid of a text."""
    return tuple(tuple(map(int, row)) for row in text.split("/"))


def show(grid: Iterable[Iterable[int]]) -> str:
    """Return the text of a grid."""
    return "/".join("".join(map(str, row)) for row in grid)


# --- RE-ARC: a generator and a verifier for each ARC-AGI-1 training task ---

REARC = "reasoning_gym.arc.rearc_utils"


def rearc(options: dict[str, Any]) -> dict[str, tuple[Draw, Callable[[Grid], Grid] | None]]:
    """Return task id → how its pairs are drawn, each verified, and the verifier."""
    _speed_up(import_module(f"{REARC}.dsl"))  # before the modules that copy its names
    generators, verifiers = (import_module(f"{REARC}.{n}") for n in ("generators", "verifiers"))
    low, high = options["difficulty"]

    def rule(name: str) -> tuple[Draw, Callable[[Grid], Grid]]:
        generate, verify = (
            getattr(generators, f"generate_{name}"),
            getattr(verifiers, f"verify_{name}"),
        )

        def draw(rng: Random) -> tuple[Grid, Grid]:
            pair = generate(rng, low, high)
            if verify(pair["input"]) != pair["output"]:
                raise RejectedError("not verified")
            return pair["input"], pair["output"]

        return draw, verify

    prefix = "generate_"
    return {
        n.removeprefix(prefix): rule(n.removeprefix(prefix))
        for n in dir(generators)
        if n.startswith(prefix)
    }


def _speed_up(dsl: Any) -> None:
    """Replace four functions that take most of the time by faster ones that return the same."""
    if getattr(dsl, "sped_up", False):
        return
    dsl.sped_up = True
    for name in ("dneighbors", "ineighbors", "neighbors"):  # called for the same cells all the time
        setattr(dsl, name, _cached(getattr(dsl, name)))

    def shift(patch: Any, directions: tuple[int, int]) -> Any:
        if len(patch) == 0:
            return patch
        down, right = directions
        if isinstance(next(iter(patch))[1], tuple):
            return frozenset([(value, (i + down, j + right)) for value, (i, j) in patch])
        return frozenset([(i + down, j + right) for i, j in patch])

    def occurrences(grid: Grid, obj: Any) -> frozenset[tuple[int, int]]:
        cells = [(value, i, j) for value, (i, j) in dsl.normalize(obj)]
        rows = len(grid) - max((i for _, i, _ in cells), default=0)
        columns = len(grid[0]) - max((j for _, _, j in cells), default=0)
        places = [(i, j) for i in range(rows) for j in range(columns)]
        found = set()
        for i, j in places:
            for value, a, b in cells:  # the library shifts all of them first
                if grid[i + a][j + b] != value:
                    break
            else:
                found.add((i, j))
        return frozenset(found)

    dsl.shift, dsl.occurrences = shift, occurrences


def _cached(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    known = lru_cache(maxsize=None)(function)
    return lambda location: known(location)  # a function with code, which the library asks for


# --- one-dimensional rules ---


def arc_1d(options: dict[str, Any]) -> dict[str, tuple[Draw, None]]:
    """Return name → how pairs are drawn, for each function with each value of its parameters.

    The library's table has the rules that move by `move_pix` cells for 1 to 4 of them.
    """
    table = import_module("reasoning_gym.arc.arc_1d_tasks").ARC_1D_TASKS
    least, most = options["cells"]

    def rule(function: Callable[..., Any], parameters: dict[str, Any]) -> tuple[Draw, None]:
        def draw(rng: Random) -> tuple[Grid, Grid]:
            pair = function(rng, rng.randint(least, most), **parameters)
            if pair is None:
                raise RejectedError("no room")
            return (tuple(pair["input"]),), (tuple(pair["output"]),)

        return draw, None

    rules = {}
    for name, (function, parameters) in table.items():
        if "move_pix" not in parameters:
            rules[name] = rule(function, parameters)
        elif parameters["move_pix"] == 1:
            for cells in range(1, options["max_shift"] + 1):
                shifted = name.replace("1pix", f"{cells}pix")
                rules[shifted] = rule(function, {**parameters, "move_pix": cells})
    return rules


RULES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {"rearc": rearc, "arc_1d": arc_1d}

if __name__ == "__main__":
    main()
