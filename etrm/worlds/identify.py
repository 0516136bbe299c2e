"""Whether demos identify the answers: all rules of the family that explain them agree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from etrm.worlds.primitive import Grid, Pairs, Primitive, same


def is_identified(
    primitives: Sequence[Primitive],
    compositions: Sequence[tuple[Primitive, ...]],
    demos: Pairs,
    queries: Pairs,
) -> bool:
    """Return whether every rule that explains all `demos` gives the outputs of all `queries`.

    Rules are those of one primitive, with any values, and those of `compositions`; one at least has
    to explain them. Where there are compositions, a task that one primitive explains is none of
    them, and counts as not identified.
    """
    inputs, outputs, explained = [x for x, _ in queries], [y for _, y in queries], False
    for primitive in primitives:
        for answers in primitive.answers(demos, inputs):
            if compositions or answers is None or not _agree(answers, outputs):
                return False
            explained = True
    for answers in _answers_of_compositions(compositions, demos, inputs):
        if answers is None or not _agree(answers, outputs):
            return False
        explained = True
    return explained


def _agree(answers: Sequence[Grid], outputs: Sequence[Grid]) -> bool:
    return all(same(a, b) for a, b in zip(answers, outputs, strict=True))


def _answers_of_compositions(
    compositions: Sequence[tuple[Primitive, ...]], demos: Pairs, inputs: Sequence[Grid]
) -> Iterator[list[Grid] | None]:
    """Yield the answers of all compositions that explain `demos`.

    Whatever first steps give equal grids is followed up once.
    """
    followers: dict[Primitive, list[Primitive]] = {}
    for first, second in compositions:
        followers.setdefault(first, []).append(second)
    done: set[tuple[Primitive, tuple[tuple[tuple[int, ...], bytes], ...]]] = set()
    grids = [*(x for x, _ in demos), *inputs]
    for first, seconds in followers.items():
        for values in first.space(*grids[0].shape):
            between = [first.apply(grid, *values) for grid in grids]
            key = tuple((grid.shape, grid.tobytes()) for grid in between)
            pairs = [(x, y) for x, (_, y) in zip(between, demos, strict=False)]
            for second in seconds:
                if (second, key) not in done:
                    done.add((second, key))
                    yield from second.answers(pairs, between[len(demos) :])
