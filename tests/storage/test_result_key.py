"""Keys of results from both sides: edits that must change none, and edits that must change some."""

from __future__ import annotations

import ast
import re
import shutil
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import pytest

from etrm.config.registry import CONTEXT_SOURCES
from etrm.storage.code_digest import _Numbers, is_prose
from etrm.storage.digests import (
    PACKAGE,
    _code_digests,
    code_digest,
    code_digests,
    is_computing,
    score_code,
    source_file,
    train_code,
)

SOURCES = ("standard", "lpn", "embedding")
KEYS = {f"train {s}": train_code(s) for s in SOURCES} | {
    f"score {s}": score_code(s) for s in SOURCES
}
KEYS["refine standard"] = score_code("standard", "refinement")
KEYS["train searching standard"] = train_code("standard", searches=True)
MODULES = {
    ".".join(("etrm", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
PROGRAM = "etrm.arc.generator_program"  # run in a process of its own; nothing imports it
COMPUTING_FILES = {n: path for n, path in MODULES.items() if is_computing(n) and n != PROGRAM}

# File, what stands there once (None: the end of the file), and what is put in its place.
SAME = {
    "a reworded error": ("training/slots.py", "raise it or use fewer GPUs", "use fewer GPUs"),
    "an error of a method that is missing": (
        *("models/encoders/base.py", "does not define forward", "has no forward"),
    ),
    "another check's message": ("evaluation/pass_at_k.py", "which was not asked for", "unknown"),
    "a health diagnosis": (
        *("training/health.py", '"the loss explodes or is not a number"'),
        '"the loss is no number"',
    ),
    "help of an option": ("models/encoders/shared.py", '"hidden size of the encoder"', '"width"'),
    "help of an encoder's own option": (
        *("models/encoders/standard.py", '"tokens of a pair to one vector"', '"pooling of tokens"'),
    ),
    "a log line": ("evaluation/run.py", 'log.info("pass@1 %s"', 'log.debug("pass@1: %s"'),
    "a warning of W&B": ("tracking/tracker.py", "W&B: not started", "W&B did not start"),
    "the print interval": (
        *("runtime/progress.py", "SECONDS_BETWEEN_LINES = 20.0", "SECONDS_BETWEEN_LINES = 9.0"),
    ),
    "the lock of a run": ("runtime/run_lock.py", None, "WAIT_SECONDS = 1"),
    "what is recorded of the software": ("runtime/environment.py", None, "X = 1"),
    "the launcher": ("launch/torchrun.py", None, "WAIT_SECONDS = 1"),
    "states, signals and messages of a run": ("training/recorder.py", None, "X = 1"),
    "the files of a run": ("training/outputs.py", None, "X = 1"),
    "a figure's style": ("report/style.py", None, "X = 1"),
    "a docstring": ("models/losses.py", "The loss of an ACT step", "The loss of a step"),
    "a comment": ("training/build.py", "# From here on, nothing", "# After this, nothing"),
    "an annotation": ("data/counter_random.py", "bound: Tensor | int", "bound: int | Tensor"),
    "the annotation of a field": ("models/losses.py", "labelled: Tensor", "labelled: Any"),
    "wording of the plan": ("study/plan/plan.py", None, 'X = "a b"'),
    "wording of the doctor": ("study/doctor/diagnose.py", None, 'X = "a b"'),
    "help of the command line": ("cli.py", None, 'X = "a b"'),
    "the configuration's reference": ("config/reference.py", None, 'X = "a b"'),
    "a schema's bounds": ("config/study.py", None, "X = 1"),
    "the reader of records": ("storage/records.py", None, "X = 1"),
    "how files are written": ("storage/files.py", "ZSTD_LEVEL = 9", "ZSTD_LEVEL = 3"),
    "a meaning in the tables": ("data/tables.py", '"rows of the input grid', '"height of the grid'),
    "a count of FLOPs": (
        *("models/encoders/lpn.py", "maps(self.bottleneck, latents)"),
        "maps(self.expand, latents)",
    ),
    "a helper that nothing uses": ("models/layers.py", None, "def unused(): return 1"),
}
# Every trainer has the code of TRM's table, which has an optimizer of its own.
EMBEDDING = "train *|score embedding"
# The same, and patterns of the keys that change.
OTHER = {
    "the loss": ("models/losses.py", "s.log() - s.sum", "s.log() + s.sum", "*"),
    "the halting decision": ("models/act.py", "(last | (q_halt > 0))", "last", "train *"),
    "the sampler": (
        *("data/episodes.py", "random.integers(u, len(self.episodes))"),
        *("random.integers(u, 1)", "train *"),
    ),
    "the choice of episodes": ("data/pools.py", "(places >= query)", "(places > query)", "*"),
    "leak exclusion": ("training/build.py", "r.answer_of is None", "r.answer_of != 1", "train *"),
    "answers are hidden": ("training/build.py", "Pair(q.input, None)", "q", "train *"),
    "colour permutation": ("data/corpus.py", "self.permutation[puzzle]", "self.permutation", "*"),
    "dihedral": ("data/corpus.py", "FLIP_ROW = (0, 0, 1", "FLIP_ROW = (0, 1, 1", "*"),
    "the optimizer": ("training/optim.py", "torch.atan2(", "torch.true_divide(", "train *"),
    "EMA": ("training/optim.py", "1 - self.decay", "self.decay", "train *"),
    "LR warm-up": ("training/optim.py", "step / warmup_steps", "step / 2", "train *"),
    "an encoder": (
        *("models/encoders/standard.py", "self.pooling(tokens, pairs.real)"),
        *("self.pooling(tokens, pairs.mask)", "* standard"),
    ),
    "another encoder": ("models/encoders/lpn.py", "def forward(", "def forwards(", "* lpn"),
    "parts that encoders share": (
        *("models/encoders/shared.py", "self.scale * rms_norm(x)", "rms_norm(x)", "* [sl]*[dn]"),
    ),
    "an option's default": (
        *("models/encoders/shared.py", '"hidden size of the encoder", 512'),
        *('"x y", 9', "* [sl]*[dn]"),
    ),
    "the table of embeddings": (
        *("models/encoders/embedding.py", "math.sqrt(self.model.width)", "1.0", EMBEDDING),
    ),
    "rotary positions": ("models/layers.py", "1.0 / theta **", "2.0 / theta **", "*"),
    "a constant": ("models/layers.py", "NORM_EPS = 1e-5", "NORM_EPS = 1e-6", "*"),
    "the number format": ("models/compute.py", '"bf16": torch.bfloat16', '"bf16": torch.half', "*"),
    "order of the vote": (
        *("evaluation/voting.py", "(-q_mean, -count, query_code)"),
        *("(-count, query_code)", "score *|refine *"),
    ),
    "crop": ("arc/grid.py", "(tokens < VOCAB_SIZE)", "(tokens <= VOCAB_SIZE)", "score *|refine *"),
    "credit of pass@k": (
        "evaluation/pass_at_k.py",
        "solved.mean(0)",
        "solved.min(0)",
        "score *|refine *",
    ),
    "the steps of a search": (
        *("refinement/search.py", "(0.9, 0.999)", "(0.9, 0.99)", "refine *|train searching *"),
    ),
    "search in training": ("refinement/step.py", "score / count", "score", "train searching *"),
    "the objective of a search": (
        "refinement/demos.py",
        "-losses.lm.double()",
        "losses.lm",
        "refine *|train searching *",
    ),
    "the choice of attempts": (
        "refinement/scores.py",
        '["attempt"] == n',
        '["attempt"] == 1',
        "refine *",
    ),
    "the read-out of contexts": (
        *("evaluation/readout.py", "np.logspace(-4, 4, 17)", "np.logspace(-4, 4, 9)", "score *"),
    ),
    "the metric that the gate reads": (
        *("evaluation/metrics.py", "losses.labelled", "~losses.labelled", "train *"),
    ),
    "the answer of an evaluation": (
        *("evaluation/decode.py", "output.q_halt > 0", "output.q_halt > 1", "*"),
    ),
    "the rule that stops a run": (
        *(
            "training/health.py",
            "median, last = statistics.median",
            "median, last = max",
            "train *",
        ),
    ),
    "what stops a run": ("training/loop.py", "run.train.stop_on_health or", "True or", "train *"),
    "the target": ("training/loop.py", "is not None and exact >=", "and exact >=", "train *"),
    "initial weights": (
        *("storage/checkpoint.py", 'removeprefix("decoder.")', 'removeprefix("d.")', "train *"),
    ),
    "official weights": ("storage/official.py", '("H_init", "L_init")', '("H_init",)', "train *"),
    "counter-based random numbers": (
        *("data/counter_random.py", "_shift(x, 27)", "_shift(x, 26)", "train *|refine *"),
    ),
    "pieces of a batch": ("models/memory.py", "MARGIN = 1.25", "MARGIN = 1.5", "*"),
    "sums over ranks": ("runtime/distributed.py", "dist.all_reduce(tensor)", "pass", "train *"),
    "order of a dataclass's fields": (
        *("models/losses.py", "    lm: Tensor", "    added: Tensor\n    lm: Tensor", "*"),
    ),
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package, in which one file at a time is edited."""
    return copied(tmp_path_factory.mktemp("copy"))


def copied(folder: Path) -> Path:
    """Return a copy of the package in a folder."""
    package = folder / "etrm"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    return package


@cache
def digests_today() -> dict[str, dict[str, str]]:
    return {name: code_digests(*roots) for name, roots in KEYS.items()}


def digests_of(package: Path) -> dict[str, dict[str, str]]:
    taken = _code_digests.__wrapped__  # of files that change: without its cache
    return {name: taken(roots, package) for name, roots in KEYS.items()}


def edit(path: Path, before: str | None, after: str) -> None:
    """Replace what stands in one place of a file, or add to its end."""
    text = path.read_text(encoding="utf-8")
    if before is None:
        changed = f"{text}\n{after}\n"
    else:
        assert before in text, f"{path}: {before!r} is not there any more"
        assert text.count(before) == 1 or before == "def forward(", f"{path}: {before!r} twice"
        changed = text.replace(before, after, 1)
    path.write_text(changed, encoding="utf-8")


def test_edits_that_change_no_number_change_no_key(tmp_path: Path) -> None:
    """All at once: a digest that one of them changes is not changed back by another."""
    package = copied(tmp_path)
    for name, before, after in SAME.values():
        edit(package / name, before, after)
    assert digests_of(package) == digests_today()


@pytest.mark.parametrize(("name", "before", "after", "pattern"), OTHER.values(), ids=OTHER)
def test_an_edit_that_changes_numbers_changes_the_keys_of_these(
    copy: Path, name: str, before: str | None, after: str, pattern: str
) -> None:
    text = (copy / name).read_text(encoding="utf-8")
    edit(copy / name, before, after)
    try:
        today, then = digests_today(), digests_of(copy)
    finally:
        (copy / name).write_text(text, encoding="utf-8")
    changed = {key for key in KEYS if today[key] != then[key]}
    assert changed == {k for k in KEYS if any(fnmatchcase(k, p) for p in pattern.split("|"))}
    # The plan names the file.
    first = min(changed)
    modules = {*today[first], *then[first]}
    files = {source_file(m) for m in modules if today[first].get(m) != then[first].get(m)}
    assert files == {f"etrm/{name}"}


def test_every_source_has_a_key_of_its_own() -> None:
    for code in (train_code, score_code):
        keys = [code_digest(*code(source)) for source in CONTEXT_SOURCES]
        assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    "root", ["etrm.models.act:nothing", "etrm.nothing:Trainer", "etrm.nothing"]
)
def test_an_unknown_root_is_an_error(root: str) -> None:
    with pytest.raises(LookupError, match="nothing"):
        code_digest(root)


# --- assumptions of the rule, held for all code that computes ---


def test_computing_code_imports_in_ways_that_are_followed() -> None:
    """By name; only the registry of the configuration loads a module by a string."""
    for module, path in COMPUTING_FILES.items():
        text = path.read_text(encoding="utf-8")
        found = re.findall(
            r"importlib(?! import metadata)|__import__|import \*|globals\(\)"
            r"|(?<![.\w])(?:exec|eval)\(",
            text,
        )
        assert not found, f"{module}: {found}"
        tree = ast.parse(text)
        aliases = {  # names that stand for modules of this package
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
            if f"{node.module}.{alias.name}" in MODULES
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "vars"):
                assert ast.unparse(node.args[0]) not in aliases, f"{module}:{node.lineno}"


FUNCTIONS_OF_FORMATS = re.compile(r"(einsum|rearrange|compile|match|sub|split|pack|unpack|query)$")


def test_text_with_spaces_is_for_people() -> None:
    """No pattern, format or equation has any, in code that computes."""
    for module, path in COMPUTING_FILES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and FUNCTIONS_OF_FORMATS.search(ast.unparse(node.func)):
                texts = [a.value for a in node.args if isinstance(a, ast.Constant)]
                assert not any(is_prose(str(text)) for text in texts), f"{module}:{node.lineno}"
            elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
                assert not is_prose(str(node.slice.value)), f"{module}:{node.lineno}"
            elif isinstance(node, ast.Compare):
                for side in (node.left, *node.comparators):
                    # The text of an error of torch, in code that reads states.
                    if isinstance(side, ast.Constant) and side.value != "allocate memory":
                        assert not is_prose(str(side.value)), f"{module}:{node.lineno}"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("raise E(f'{a}: b', c()) from d", "raise E"),
        ("assert a == b, 'c d'", "assert a == b"),
        ("x = 'a b'", "x = ''"),
        ("x = f'{a} is {b()}'", "x = ''"),
        ("x = f'decoder.{n}'", "x = f'decoder.{n}'"),
        ("x = ', '", "x = ', '"),
        ("log.info('a', b)", "pass"),
        ("say('a')", "pass"),
        ("if a:\n    say('a')", "pass"),
        ("if a():\n    say('a')", "if a():\n    pass"),
        ("x = say('a')", "x = say('a')"),
        ("def f(a: int, *, b: str = 'c') -> None: return a", "def f(a, *, b='c'): return a"),
        ("x: int = option('h', 1, ge=0, help='x')", "x: 'field' = option(1, ge=0)"),
        ("x: ClassVar[int] = 1", "x: 'ClassVar' = 1"),
    ],
)
def test_code_without_text_for_people(text: str, left: str) -> None:
    tree = _Numbers({"log", "say"}).visit(ast.parse(text))
    assert ast.unparse(tree) == ast.unparse(ast.parse(left))
