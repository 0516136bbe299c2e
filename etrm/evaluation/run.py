"""The evaluation of one run on held-out tasks: predictions, scores, submission."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from etrm.arc.task import Task
from etrm.config.load import evaluation_settings
from etrm.config.registry import context_source
from etrm.config.schema import parse
from etrm.config.study import EvaluationConfig, RunConfig
from etrm.data.corpus import Corpus, CorpusError
from etrm.data.episodes import group_by_lane, held_out_questions
from etrm.data.seen_tasks import find_touched, read_seen_run
from etrm.data.tables import read_augmentations, read_tasks
from etrm.evaluation.decode import PREDICTIONS, NotFiniteError, all_variants, predict
from etrm.evaluation.scoring import score, submission
from etrm.evaluation.shards import Lane, Part, gather, share, write_part
from etrm.models.build import build_model
from etrm.models.compute import DTYPES, compile_blocks, compiles, device_name
from etrm.runtime.environment import environment
from etrm.storage.checkpoint import load_weights
from etrm.storage.digests import code_digest, code_digests, digest, evaluation_key, score_code
from etrm.storage.files import file_digest, write_json_atomic, write_table_atomic
from etrm.storage.finished import SCORE_FILES, is_kept, keep, take_back
from etrm.storage.records import check_weights, read_score

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """What a run is asked: the held-out tasks, and the questions about those that it answers."""

    run: RunConfig
    tasks: list[Task]  # all of the split: they are the denominators
    corpus: Corpus
    lanes: list[Lane]


def evaluate_run(
    run_folder: Path,
    tasks_path: Path,
    augmentations_path: Path,
    config: EvaluationConfig,
    out: Path,
    device: str | None = None,
    state: Path | None = None,
    compile: str = "auto",
    parts: Sequence[Path] = (),
) -> dict[str, Any]:
    """Write `predictions.parquet`, `score.json` and `submission.json`; returns the score.

    A table of embeddings is asked about the puzzles that it was trained on (their test outputs
    were hidden then); an encoder about any task. Finished evaluations are kept in `state`: the same
    one, asked for again, is taken back from there. `compile`: as in `execution`. `parts`: the files
    of all `evaluate_part`, in order; nothing is decoded then.

    Raises `PartError` where they are not the whole evaluation, `DamagedFileError` where the record
    of the run is damaged or its weights are others, and `NotFiniteError` where they give no numbers
    although their run did not diverge.
    """
    record, tables = read_seen_run(run_folder), (tasks_path, augmentations_path)
    began, made_with = time.perf_counter(), _made_with(run_folder, record, tables, config)
    key = _key(made_with, record)
    store = None if state is None else _store(state, record)
    if store is not None and take_back(out, SCORE_FILES, store, key):
        log.info("the same evaluation was finished before: taken back from %s", store)
        return read_score(out / "score.json")
    target = torch.device("cpu") if parts else _device(device)
    asked = _ask(run_folder, record, tables, config, target)
    if parts:
        table = gather(parts, asked.corpus, asked.lanes, config.batch_size, key, _diverged(record))
    else:
        table = _decode(run_folder, record, asked, asked.lanes, config, compile)
    # Of those that share an evaluation, none knows what all of them took.
    seconds = None if parts else round(time.perf_counter() - began, 3)
    made_with |= {"device": device_name(target), "seconds": seconds}
    result = _write(out, record, asked, table, config, made_with)
    try:
        if store is not None:
            keep(out, SCORE_FILES, store, key)
    except OSError as error:
        log.warning("%s is complete, but could not be kept in %s as well (%s)", out, store, error)
    return result


def evaluate_part(
    run_folder: Path,
    tasks_path: Path,
    augmentations_path: Path,
    config: EvaluationConfig,
    out: Path,
    part: Part,
    device: str | None = None,
    state: Path | None = None,
    compile: str = "auto",
) -> None:
    """Decode one part of what `evaluate_run` asks, and write its predictions to the file `out`.

    Where the whole evaluation is kept in `state`, nothing is decoded: the file is empty, and will
    not be read.
    """
    record, tables = read_seen_run(run_folder), (tasks_path, augmentations_path)
    key = _key(_made_with(run_folder, record, tables, config), record)
    table = PREDICTIONS.empty_table()
    if state is not None and is_kept(SCORE_FILES, _store(state, record), key):
        log.info("the evaluation was finished before: nothing to decode")
    else:
        asked = _ask(run_folder, record, tables, config, _device(device))
        lanes = share(asked.lanes, config.batch_size, part)
        table = _decode(run_folder, record, asked, lanes, config, compile) if lanes else table
        log.info("%s: %d predictions", part, table.num_rows)
    write_part(out, table, part, key)


def _store(state: Path, record: Mapping[str, Any]) -> Path:
    return state / "finished" / record["experiment"] / f"evaluation/seed{record['seed']}"


def _device(device: str | None) -> torch.device:
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _ask(
    run_folder: Path,
    record: Mapping[str, Any],
    tables: tuple[Path, Path],
    config: EvaluationConfig,
    device: torch.device,
) -> Asked:
    run: RunConfig = parse(RunConfig, record["config"])
    tasks = held_out_tasks(tables[0])
    asked = tasks if config.tasks is None else _subset(tasks, config.tasks)
    corpus = _corpus(run_folder, record, run, asked, tables, config, device)
    wanted = {task.id for task in asked}
    questions = [q for q in held_out_questions(corpus) if corpus.tasks[q.task].id in wanted]
    episodes = group_by_lane(corpus, questions, run.episodes.canvas, run.episodes.max_demos)
    return Asked(run, tasks, corpus, all_variants(corpus, episodes, config.variants))


def _decode(
    run_folder: Path,
    record: Mapping[str, Any],
    asked: Asked,
    lanes: list[Lane],
    config: EvaluationConfig,
    compile: str,
) -> pa.Table:
    run, corpus = asked.run, asked.corpus
    puzzles = corpus.num_puzzles if record["kind"] == "trm" else 1
    model = build_model(run, puzzles).to(corpus.device)
    model.load_state_dict(load_weights(run_folder / "model.safetensors", config.weights))
    if compiles(compile, corpus.device):
        compile_blocks(model)
    try:
        return predict(model, corpus, lanes, run.halting, config, DTYPES[run.train.dtype])
    except NotFiniteError as error:
        if not _diverged(record):
            raise NotFiniteError(f"{run_folder / 'model.safetensors'}: {error}") from None
        log.warning("%s has diverged: it has no answers, and all tasks count as wrong", run_folder)
        return PREDICTIONS.empty_table()


def _diverged(record: Mapping[str, Any]) -> bool:
    """Did the run end because its loss exploded? Its score is a result, and no error."""
    return record.get("stopped_early") == "divergence"


def _write(
    out: Path,
    record: Mapping[str, Any],
    asked: Asked,
    table: pa.Table,
    config: EvaluationConfig,
    made_with: Mapping[str, Any],
) -> dict[str, Any]:
    predictions, tasks = table.to_pandas(), asked.tasks
    result = {
        **{key: record[key] for key in ("experiment", "stage", "seed", "kind", "split")},
        "held_out": held_out_status(record, tasks),
        **made_with,
        "tasks_of_split": len(tasks),
        "environment": environment(),
        **score(
            predictions,
            tasks,
            ks=list(config.pass_k),
            bootstrap_samples=config.bootstrap,
            seed=config.seed,
            variants=config.variants,
        ),
    }
    out.mkdir(parents=True, exist_ok=True)
    write_table_atomic(out / "predictions.parquet", table)
    write_json_atomic(out / "submission.json", submission(predictions, tasks))
    write_json_atomic(out / "score.json", result)
    log.info("pass@1 %s", result["pass"][str(config.pass_k[0])]["task_fraction"])
    return result


def _corpus(
    run_folder: Path,
    record: Mapping[str, Any],
    run: RunConfig,
    asked: Sequence[Task],
    tables: tuple[Path, Path],
    config: EvaluationConfig,
    device: torch.device,
) -> Corpus:
    """The tasks asked about, or all that a table of embeddings was trained on."""
    tasks_path, augmentations_path = tables
    variants = read_augmentations(augmentations_path)
    if context_source(run.context.source).needs_demos:
        return Corpus(asked, variants, device, limit=config.variants)
    by_id = {r.task.id: r.task for r in read_tasks(tasks_path)}
    known = [by_id[name] for name in record["tasks"]]
    corpus = Corpus(known, variants, device, limit=run.train.variants)
    if corpus.recipes_digest() != record["recipes_digest"]:
        raise CorpusError(
            f"{augmentations_path}: found other augmented puzzles than those that"
            f" {run_folder} has embeddings of, expected the same table; train it again"
        )
    return corpus


def _made_with(
    run_folder: Path,
    record: Mapping[str, Any],
    tables: tuple[Path, Path],
    config: EvaluationConfig,
) -> dict[str, Any]:
    """What an evaluation is compared with later, to see whether it is still today's.

    Raises `DamagedFileError` where the weights are not those that the run has written.
    """
    code = score_code(record["config"]["context"]["source"])
    return {
        "evaluation": evaluation_settings(config),
        "run_key": record["key"],
        "weights_sha256": check_weights(run_folder, record),
        "data": {path.stem: file_digest(path) for path in tables},
        "code": code_digests(*code),
    }


def _key(made_with: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """Digest of everything that determines an evaluation."""
    return evaluation_key(
        made_with["evaluation"],
        made_with["run_key"],
        made_with["weights_sha256"],
        list(made_with["data"].values()),
        code_digest(*score_code(record["config"]["context"]["source"])),
    )


def held_out_tasks(tasks_path: Path) -> list[Task]:
    """The evaluation tasks of a study, in order."""
    return [r.task for r in read_tasks(tasks_path) if r.split == "evaluation"]


def _subset(tasks: Sequence[Task], count: int) -> list[Task]:
    order = sorted(tasks, key=lambda task: digest(["subset", task.id]))
    chosen = {task.id for task in order[:count]}
    return [task for task in tasks if task.id in chosen]


def held_out_status(record: Mapping[str, Any], tasks: Sequence[Task]) -> dict[str, Any]:
    """Has any weight of a run (its run.json) been touched by a held-out task, by id or content?

    `status`: `proven` (none seen, all ancestors known), `not proven` (none seen, but an ancestor
    of unknown origin), `seen`. `answers`: of how many a labelled test pair was seen.
    """
    touches = find_touched(record["seen_tasks"], tasks)
    status = "seen" if touches else "not proven" if record["unproven"] else "proven"
    return {
        "status": status,
        "seen": len(touches),
        "answers": sum(bool(touch.answers) for touch in touches.values()),
        "of": len(tasks),
        "unproven": record["unproven"],
    }
