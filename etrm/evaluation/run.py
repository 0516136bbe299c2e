"""The evaluation of one run on held-out tasks: predictions, scores, submission.

`evaluate_run` and `evaluate_shard` read, log and write; the functions that they call compute.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
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
from etrm.data.episodes import group_by_lane, held_out_questions, shuffle_demos
from etrm.data.seen_tasks import find_touched, read_seen_run
from etrm.data.tables import read_augmentations, read_tasks
from etrm.evaluation.contexts import contexts_of
from etrm.evaluation.decode import (
    PREDICTIONS,
    LaneQuestions,
    NotFiniteError,
    all_variants,
    in_batches,
    predict_batches,
)
from etrm.evaluation.metrics import means_by_step
from etrm.evaluation.parts import IN_MEMORY, Parts, cache_finished, parts_of
from etrm.evaluation.pass_at_k import score, submission
from etrm.evaluation.readout import read_out
from etrm.evaluation.shards import (
    Shard,
    contexts_in,
    merge_shards,
    questions_of_shard,
    write_shard,
)
from etrm.evaluation.voting import voting_rows
from etrm.models.act import Model
from etrm.models.build import load_model
from etrm.models.compute import DTYPES, compile_blocks, compiles, device_name, pick_device
from etrm.runtime.environment import environment
from etrm.storage.digests import code_digest, code_digests, digest, evaluation_key, score_code
from etrm.storage.files import table_digest, truth_digest, write_json_atomic, write_table_atomic
from etrm.storage.records import check_weights, read_score
from etrm.storage.result_cache import SCORE_FILES, is_cached, restore_result

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """The evaluation of one run with given tables and settings, before anything is decoded."""

    folder: Path  # of the run
    record: Mapping[str, Any]  # its run.json
    tables: tuple[Path, Path]  # tasks.parquet, augmentations.parquet
    config: EvaluationConfig
    provenance: dict[str, Any]  # in score.json: compared later to see whether the score is stale
    key: str  # digest of everything that determines its result
    stage: str = "evaluation"  # or `refinement`, or `validation`

    @property
    def run(self) -> RunConfig:
        """The configuration of the run."""
        return parse(RunConfig, self.record["config"])

    @property
    def diverged(self) -> bool:
        """Return whether the loss of the run exploded: its score is then a result, no error."""
        return bool(self.record.get("stopped_early") == "divergence")

    def store(self, state: Path) -> Path:
        """Return the folder in `state` where results of this evaluation are cached."""
        name, seed = self.record["experiment"], self.record["seed"]
        return state / "finished" / name / f"{self.stage}/seed{seed}"


@dataclass(frozen=True)
class Questions:
    """The held-out tasks that are asked for, and the questions about them that a run answers."""

    tasks: list[Task]  # the denominators
    of_split: int  # held-out tasks that there are: more than asked for where a subset is
    corpus: Corpus
    lanes: list[LaneQuestions]


def evaluate_run(
    run_folder: Path,
    tasks_path: Path,
    augmentations_path: Path,
    config: EvaluationConfig,
    out: Path,
    device: str | None = None,
    state: Path | None = None,
    compile: str = "auto",
    shards: Sequence[Path] = (),
) -> dict[str, Any]:
    """Write the files of an evaluation (`SCORE_FILES`), and return the score.

    A table of embeddings is asked about the puzzles that it was trained on (their test outputs
    were hidden then); an encoder about any task. Finished evaluations are cached in `state`, and
    restored from there. `compile`: as in `execution`. `shards`: the files of all `evaluate_shard`,
    in order; nothing is decoded then.

    Raises `ShardError` where they are not the whole evaluation, `DamagedFileError` where the record
    of the run is damaged or its weights are others, and `NotFiniteError` where they give no numbers
    although their run did not diverge.
    """
    began = time.perf_counter()
    evaluation = identify_evaluation(run_folder, (tasks_path, augmentations_path), config)
    store = None if state is None else evaluation.store(state)
    if store is not None and restore_result(out, SCORE_FILES, store, evaluation.key):
        log.info("the same evaluation was finished before: restored from %s", store)
        return read_score(out / "score.json")
    target = torch.device("cpu") if shards else pick_device(device)  # merging decodes nothing
    questions = choose_questions(evaluation, target)
    if shards:
        asked = questions.corpus, questions.lanes, config.batch_size
        table = merge_shards(shards, *asked, evaluation.key, evaluation.diverged)
    else:
        batches = in_batches(questions.lanes, config.batch_size)
        parts = parts_of(store, evaluation.key)
        table = decode_questions(evaluation, questions, batches, compile, parts)
    if not table.num_rows and evaluation.diverged:
        log.warning("%s has diverged: it has no answers, and all tasks count as wrong", run_folder)
    # A merged evaluation has no duration: no job knows the time of all.
    seconds = None if shards else round(time.perf_counter() - began, 3)
    made_on = {"device": device_name(target), "seconds": seconds, "environment": environment()}
    result = score_run(evaluation, questions, table) | made_on
    result |= score_controls(evaluation, target, compile)
    out.mkdir(parents=True, exist_ok=True)
    write_table_atomic(out / "predictions.parquet", table)
    write_json_atomic(out / "submission.json", submission(voting_rows(table), questions.tasks))
    contexts = contexts_in(shards[0]) if shards else _contexts(evaluation, target)
    write_table_atomic(out / "contexts.parquet", contexts)
    write_json_atomic(out / "score.json", result)
    log.info("pass@1 %s", result["pass"][str(config.pass_k[0])]["task_fraction"])
    cache_finished(out, SCORE_FILES, store, evaluation.key)
    return result


def evaluate_shard(
    run_folder: Path,
    tasks_path: Path,
    augmentations_path: Path,
    config: EvaluationConfig,
    out: Path,
    shard: Shard,
    device: str | None = None,
    state: Path | None = None,
    compile: str = "auto",
) -> None:
    """Decode one shard of an evaluation, and write its predictions to the file `out`.

    Where the whole evaluation is cached in `state`, nothing is decoded: the file is empty, and is
    not read.
    """
    evaluation = identify_evaluation(run_folder, (tasks_path, augmentations_path), config)
    store = None if state is None else evaluation.store(state)
    table, contexts = PREDICTIONS.empty_table(), None
    if store is not None and is_cached(SCORE_FILES, store, evaluation.key):
        log.info("the evaluation was finished before: nothing to decode")
    else:
        target = pick_device(device)
        questions = choose_questions(evaluation, target)
        batches = questions_of_shard(questions.lanes, config.batch_size, shard)
        parts = parts_of(store, evaluation.key, shard)
        if batches:  # there may be more jobs than batches
            table = decode_questions(evaluation, questions, batches, compile, parts)
        contexts = _contexts(evaluation, target) if shard.number == 0 else None
        log.info("%s: %d predictions", shard, table.num_rows)
    write_shard(out, table, shard, evaluation.key, contexts)


def identify_evaluation(
    run_folder: Path,
    tables: tuple[Path, Path],
    config: EvaluationConfig,
    stage: str = "evaluation",
    settings: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Read a run's record, and take the digest of everything that determines its evaluation.

    Or another `stage`, its refinement or its validation, of these `settings`; `config` then names
    the questions.

    Raises `DamagedFileError` where the weights are not those that the run has written.
    """
    record = read_seen_run(run_folder)
    settings = dict(evaluation_settings(config) if settings is None else settings)
    # Modules that determine the result.
    code = score_code(record["config"]["context"]["source"], stage)
    weights = check_weights(run_folder, record)
    data = {path.stem: table_digest(path) for path in tables}
    if (truth := truth_digest(tables[0])) is not None:  # the rules that are read out
        data["ground_truth"] = truth
    provenance = {
        stage: settings,
        "run_key": record["key"],
        "weights_sha256": weights,
        "data": data,
        "code": code_digests(*code),
    }
    digests = record["key"], weights, list(data.values()), code_digest(*code)
    key = evaluation_key(settings, *digests, stage)
    return Evaluation(run_folder, record, tables, config, provenance, key, stage)


def choose_questions(
    evaluation: Evaluation, device: torch.device, shuffled: bool = False
) -> Questions:
    """Return the questions: every test input of the chosen held-out tasks, in every variant.

    `shuffled`: each in the unchanged variant, with the demos of the next task in a fixed order.

    Raises `CorpusError` where a table of embeddings is of other puzzles than those of the tables.
    """
    config, run = evaluation.config, evaluation.run
    every = held_out_tasks(evaluation.tables[0], run.sources)
    order = sorted((task.id for task in every), key=lambda name: digest(["subset", name]))
    wanted = set(order[: config.tasks])  # the first of a fixed order that is unrelated to names
    tasks = [task for task in every if task.id in wanted]
    corpus = _corpus(evaluation, tasks, device)
    # A corpus of embeddings has training tasks as well.
    questions = [q for q in held_out_questions(corpus) if corpus.tasks[q.task].id in wanted]
    if shuffled:
        questions = shuffle_demos(corpus, questions)
    episodes = group_by_lane(corpus, questions, run.episodes.canvas, run.episodes.max_demos)
    lanes = all_variants(corpus, episodes, 1 if shuffled else config.variants)
    return Questions(tasks, len(every), corpus, lanes)


def _corpus(evaluation: Evaluation, chosen: Sequence[Task], device: torch.device) -> Corpus:
    """Return the chosen tasks, or all that a table of embeddings was trained on."""
    record, run = evaluation.record, evaluation.run
    tasks_path, augmentations_path = evaluation.tables
    variants = read_augmentations(augmentations_path)
    if context_source(run.context.source).needs_demos:
        return Corpus(chosen, variants, device, limit=evaluation.config.variants)
    if run.split == "strict":  # the table has no row of these tasks, but a mean
        return Corpus(chosen, variants, device, limit=evaluation.config.variants)
    by_id = {r.task.id: r.task for r in read_tasks(tasks_path)}
    known = [by_id[name] for name in record["tasks"]]  # a row of the table for each puzzle of these
    corpus = Corpus(known, variants, device, limit=run.train.variants)
    if corpus.recipes_digest() != record["recipes_digest"]:
        raise CorpusError(
            f"{augmentations_path}: found other augmented puzzles than those that"
            f" {evaluation.folder} has embeddings of, expected the same table; train it again"
        )
    return corpus


def decode_questions(
    evaluation: Evaluation,
    questions: Questions,
    batches: Sequence[LaneQuestions],
    compile: str,
    parts: Parts = IN_MEMORY,
) -> pa.Table:
    """Load the weights, and return the predictions of the batches; none of a diverged run.

    Those in `parts` are not made again. Raises `NotFiniteError` where the weights give no numbers
    and the run did not diverge.
    """
    run, corpus = evaluation.run, questions.corpus
    model = prepare_model(evaluation, corpus)
    if compiles(compile, corpus.device):
        compile_blocks(model)

    def predict(some: Sequence[LaneQuestions]) -> Iterator[pa.Table]:
        dtype = DTYPES[run.train.dtype]
        return predict_batches(model, corpus, some, run.halting, evaluation.config, dtype)

    try:
        return parts.complete(batches, predict, str(evaluation.folder))
    except NotFiniteError as error:
        if not evaluation.diverged:
            weights = evaluation.folder / "model.safetensors"
            raise NotFiniteError(f"{weights}: {error}") from None
        return PREDICTIONS.empty_table()


def prepare_model(evaluation: Evaluation, corpus: Corpus) -> Model:
    """Return the trained model on the device of the questions, ready for the tasks of these."""
    run = evaluation.run
    model = load_model(evaluation.folder, run, evaluation.config.weights).to(corpus.device)
    if run.split == "strict":
        model.context.meet_unseen(corpus.num_puzzles)
    return model


def score_run(
    evaluation: Evaluation, questions: Questions, predictions: pa.Table
) -> dict[str, Any]:
    """Return the content of `score.json`, but for the device and the time that it took."""
    config, record, tasks = evaluation.config, evaluation.record, questions.tasks
    return {
        **{key: record[key] for key in ("experiment", "stage", "seed", "kind", "split")},
        "held_out": held_out_claim(record, tasks),
        **evaluation.provenance,
        "tasks_of_split": questions.of_split,
        **score(voting_rows(predictions), tasks, ks=config.pass_k, variants=config.variants),
        "by_step": means_by_step(predictions),
    }


def score_controls(evaluation: Evaluation, device: torch.device, compile: str) -> dict[str, Any]:
    """Return `shuffled` and `readout`, of an encoder and where they are asked for or known."""
    reads = context_source(evaluation.run.context.source).needs_demos
    found: dict[str, Any] = {}
    if evaluation.config.shuffled and reads:
        found["shuffled"] = score_shuffled(evaluation, device, compile)
    if (readout := score_readout(evaluation)) is not None:
        found["readout"] = readout
    return found


def score_shuffled(evaluation: Evaluation, device: torch.device, compile: str) -> dict[str, Any]:
    """Return the pass rates with the demos of other tasks, and how many answers stay right."""
    questions = choose_questions(evaluation, device, shuffled=True)
    table = decode_questions(evaluation, questions, questions.lanes, compile)
    found = score_run(evaluation, questions, table)
    return {key: found[key] for key in ("pass", "single_variant_exact")}


def score_readout(evaluation: Evaluation) -> dict[str, Any] | None:
    """Return the read-out of contexts of held-out tasks; None without ground truth.

    Of all held-out tasks, also where the score is of a subset.
    """
    run = evaluation.run
    if not context_source(run.context.source).needs_demos:
        return None
    tasks = held_out_tasks(evaluation.tables[0], run.sources)
    if not any(task.rule for task in tasks):
        return None
    return read_out(load_model(evaluation.folder, run, evaluation.config.weights), run, tasks)


def _contexts(evaluation: Evaluation, device: torch.device) -> pa.Table:
    run, seen = evaluation.run, evaluation.record["tasks"]
    model = load_model(evaluation.folder, run, evaluation.config.weights).to(device)
    return contexts_of(model, run, seen, *evaluation.tables)


def held_out_tasks(tasks_path: Path, sources: Sequence[str] | None = None) -> list[Task]:
    """Return the evaluation tasks of a study, or of some of its sources, in order."""
    return [r.task for r in read_tasks(tasks_path, sources) if r.split == "evaluation"]


def held_out_claim(record: Mapping[str, Any], tasks: Sequence[Task]) -> dict[str, Any]:
    """Return whether a held-out task, by id or content, has touched a weight of a run's `record`.

    `status`: `proven` (none seen, all ancestors known), `not proven` (none seen, but an ancestor
    of unknown origin), `seen`. `answers`: of how many a labelled test pair was seen.
    """
    touches = find_touched(record["seen_tasks"], tasks)  # by task id
    status = "seen" if touches else "not proven" if record["unproven"] else "proven"
    return {
        "status": status,
        "seen": len(touches),
        "answers": sum(bool(touch.answers) for touch in touches.values()),
        "of": len(tasks),
        "unproven": record["unproven"],
    }
