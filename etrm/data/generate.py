"""Generate the pairs of a source: reasoning-gym in processes of its own, to a file for all studies.

A process answers for one rule at a time, and its pairs are a shard on disk at once: whoever is
killed resumes. The pairs of a rule depend on the options alone, so the number of processes and
their order change nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from etrm.arc.generated import ABOUT, LOCK, PROGRAM, SCHEMA, generated_file, generation, library
from etrm.arc.parse import Problems
from etrm.arc.public import find_public_set
from etrm.arc.sources import SourceError
from etrm.arc.task import Task, task_to_json
from etrm.config.sources import GeneratedSource
from etrm.config.text import first_few, nearest
from etrm.errors import UserError
from etrm.runtime.logs import say
from etrm.runtime.progress import Progress
from etrm.storage.files import COMPRESSION, atomic_write, write_table_atomic

MAX_NAMED = 20  # rules in one line of the summary
PROCESSES = min(4, os.cpu_count() or 1)  # where Snakemake does not say how many


def generate(source: GeneratedSource, processes: int) -> str:
    """Write the file of a source's pairs, unless it is there; return a summary for the log.

    Raises `UserError` for an unknown rule, or where the library cannot be installed.
    """
    path = generated_file(source)
    if path.is_file():
        return f"{path}: generated before"
    folder, options = install_library(), generation(source)
    shards = path.with_suffix(".shards")
    with ExitStack() as running:
        workers = [running.enter_context(_worker(folder)) for _ in range(max(1, processes))]
        rules = _chosen(source, workers[0].ask(options)["rules"])
        originals = _originals(rules) if source.kind == "rearc" else {}
        todo = [rule for rule in rules if not _shard(shards, rule).is_file()]
        if todo != rules:
            say(f"{path}: resumed, {len(rules) - len(todo)} of {len(rules)} rules are there")
        requests = [{**options, "rule": rule, **_given(originals.get(rule))} for rule in todo]
        _ask_all(workers, requests, shards, Progress(source.kind, len(todo), True, True, "rule"))
    about = _merge(path, [_shard(shards, rule) for rule in rules], options, originals)
    shutil.rmtree(shards, ignore_errors=True)
    return "\n".join([f"{path}: {library()}", *_summary(source, about["rules"])])


def _chosen(source: GeneratedSource, known: Sequence[str]) -> list[str]:
    for rule in source.rules or ():
        if rule not in known:
            names = nearest(rule, known) or ", ".join(first_few(known, MAX_NAMED))
            raise UserError(
                f"rules: found {rule!r}, expected rules of {source.kind} in {library()}: {names}"
            )
    return [rule for rule in known if source.rules is None or rule in source.rules]


def _originals(rules: Sequence[str]) -> dict[str, Task]:
    """Return the ARC-AGI-1 tasks that the rules of RE-ARC are named after."""
    problems = Problems()
    public = find_public_set("arcagi", "generate on a machine where it is", problems)
    found = [] if public is None else public.read("training", problems)
    originals = {task.id: task for task in found if task.id in rules}
    if problems:
        raise SourceError(problems)
    return originals


def _given(original: Task | None) -> dict[str, Any]:
    """Return the part of a request that has the pairs of the original task."""
    if original is None:
        return {}
    pairs = [p for p in (*original.demos, *original.queries) if p.output is not None]
    return {"original": [[_show(pair.input), _show(pair.output)] for pair in pairs]}


def _show(grid: Any) -> str:
    return "/".join("".join(map(str, row)) for row in grid.tolist())


# --- the library, in a folder of its own ---


def library_folder() -> Path:
    """Return the folder of the locked version of the library."""
    return LOCK.parents[1] / ".generators" / library().replace("==", "-")


def install_library() -> Path:
    """Return the folder of the library, which is installed where it is missing.

    Raises `UserError` where that fails, say on a machine without a package index.
    """
    folder = library_folder()
    if folder.is_dir():
        return folder
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--requirement"]
    try:
        done = subprocess.run(
            [*pip, str(LOCK), "--target", str(temporary)],
            capture_output=True,
            text=True,
            encoding="utf-8",
        )
        if done.returncode == 0 and not folder.is_dir():
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if not folder.is_dir():
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(
            f"{folder}: no such folder, expected the library {library()}; pip failed ({reason}). In"
            f" the checkout, on a machine with a package index: {' '.join(pip)} {LOCK}"
            f" --target {folder}"
        )
    return folder


class _Worker:
    """A process that answers requests, a line each."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{PROGRAM.name} ended with code {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def _worker(folder: Path) -> Iterator[_Worker]:
    """Start a process of the program; it ends with the block, or when this process dies."""
    # Not from our paths, which have other packages; and sets of text in the same order always.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    process = subprocess.Popen(
        [sys.executable, "-P", "-s", str(PROGRAM), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env={**environment, "PYTHONHASHSEED": "0"},
    )
    try:
        yield _Worker(process)
    finally:
        process.kill()
        process.communicate()


def _ask_all(
    workers: Sequence[_Worker],
    requests: Sequence[Mapping[str, Any]],
    shards: Path,
    progress: Progress,
) -> None:
    """Write the shard of every request, as many at a time as there are workers."""
    free: SimpleQueue[_Worker] = SimpleQueue()
    for worker in workers:
        free.put(worker)

    def answer(request: Mapping[str, Any]) -> str:
        worker = free.get()
        try:
            found = worker.ask(request)
        finally:
            free.put(worker)
        _write_shard(_shard(shards, found["rule"]), found)
        return str(found["rule"])

    with progress, ThreadPoolExecutor(len(workers)) as pool:
        futures = [pool.submit(answer, request) for request in requests]
        try:
            for done, future in enumerate(as_completed(futures), 1):
                progress.report(done, future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in workers:
                worker.process.kill()  # whoever waits for an answer waits no longer
            raise


# --- shards, and the file that they become ---


def _shard(folder: Path, rule: str) -> Path:
    return folder / f"{rule}.parquet"


def _write_shard(path: Path, answer: Mapping[str, Any]) -> None:
    """Write the pairs of a rule, with its counts as metadata."""
    pairs = answer["pairs"]
    rows = [[answer["rule"], *_cells(given), *_cells(expected)] for given, expected in pairs]
    counts = {key: answer[key] for key in ("draws", "rejected", "disagrees")}
    counts |= {
        "pairs": len(pairs),
        "digest": hashlib.sha256(json.dumps(pairs).encode()).hexdigest(),
    }
    columns = [pa.array([row[i] for row in rows], field.type) for i, field in enumerate(SCHEMA)]
    about = {**SCHEMA.metadata, ABOUT: json.dumps(counts)}
    write_table_atomic(path, pa.Table.from_arrays(columns, schema=SCHEMA.with_metadata(about)))


def _cells(text: str) -> tuple[int, int, bytes]:
    rows = text.split("/")
    return len(rows), len(rows[0]), bytes(map(int, "".join(rows)))


def _merge(
    path: Path,
    shards: Sequence[Path],
    options: Mapping[str, Any],
    originals: Mapping[str, Task],
) -> dict[str, Any]:
    """Write the shards as one file, a row group each; return its metadata."""
    rules = {s.stem: json.loads(pq.read_schema(s).metadata[ABOUT]) for s in shards}
    digests = [[rule, counts.pop("digest")] for rule, counts in rules.items()]
    about = {
        "generation": dict(options),
        "digest": hashlib.sha256(json.dumps(digests).encode()).hexdigest(),
        "rules": rules,
        "originals": {rule: task_to_json(task) for rule, task in originals.items()},
    }
    schema = SCHEMA.with_metadata({**SCHEMA.metadata, ABOUT: json.dumps(about)})
    with (
        atomic_write(path) as temporary,
        temporary.open("wb") as opened,
        pq.ParquetWriter(opened, schema, **COMPRESSION) as file,
    ):
        for shard in shards:
            file.write_table(pq.read_table(shard).replace_schema_metadata(schema.metadata))
    return about


def _summary(source: GeneratedSource, rules: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return lines on the pairs, on rules with too few, and on those that are not the original."""
    total = {key: sum(counts[key] for counts in rules.values()) for key in ("pairs", "draws")}
    rejected: Counter[str] = Counter()
    for counts in rules.values():
        rejected.update(counts["rejected"])
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in rejected.most_common())
    lines = [f"{total['pairs']:,} pairs of {len(rules)} rules, in {total['draws']:,} draws"]
    lines += [f"drawn again: {reasons}"] if reasons else []
    few = [f"{rule} ({c['pairs']})" for rule, c in rules.items() if c["pairs"] < source.pairs]
    differ = [f"{rule} ({c['disagrees']})" for rule, c in rules.items() if c["disagrees"]]
    for title, names in (
        (f"rules with fewer than {source.pairs:,} pairs", few),
        (
            "rules whose verifier does not give the outputs of the original task (of how many)",
            differ,
        ),
    ):
        if names:
            lines.append(f"{title}: {len(names)}: {', '.join(first_few(names, MAX_NAMED))}")
    return lines
