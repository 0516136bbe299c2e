"""The display of a study on the terminal, in place of Snakemake's listings of jobs.

A handler of Snakemake's log messages: on a terminal, lines on past events above a live view
of the jobs that run; elsewhere, as in the log of a CI, lines only. The `Snakefile` puts it in the
place of Snakemake's own handler, so that it works with every profile, and where the package is
imported from a checkout and not installed. Snakemake's own log in `.snakemake/log` stays whole.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text
from tqdm import tqdm

from etrm.runtime.interruption import EXIT_INTERRUPTED
from etrm.runtime.terminal import WIDTH, cut, fit, take, use_stand_ins
from etrm.study.terminal.dry_run import DryRun
from etrm.study.terminal.jobs import Job, failure, of_record

CHOICE = "ETRM_TERMINAL"  # an environment variable
SNAKEMAKE = "snakemake"  # its value for Snakemake's own output, as `--verbose` has it
REPLACED = "DefaultStreamHandler"  # Snakemake's name of its own handler
SECONDS = 1.0  # between readings of logs
SECONDS_BETWEEN_LINES = 60.0  # on the jobs that run, where the output is no terminal
ROOM = 12  # lines of running jobs
ERROR_LINES = 6
ECHO = 3  # columns left free: a terminal that echoes ^C there begins no line of its own

# Beginnings of messages that say nothing of a study; other messages are printed.
_NOISE = (
    *("Assuming unrestricted", "host:", "Building DAG", "Using shell:", "Provided ", "Job stats"),
    *("Rules claiming more", "Group jobs:", "Conda environments:", "Singularity containers:"),
    *("Select jobs", "Execute ", "DAG of jobs will be updated", "Updating ", "Processed "),
    *("Touching output", "Removing output files of failed", "Write-protecting", "Complete log"),
    *("Elapsed time", "Shutting down", "Waiting for ", "Storing output"),
    *("Workflow has started", "Reasons:", "This was a dry-run", "The run involves checkpoint"),
    *("Some jobs were triggered by provenance", "Rules with provenance", "Trying to restart"),
    *("Job rate limit", "Removing temporary", "Would remove"),
)
# An error: its job has been named.
_JOB_FAILED = "Exiting because a job execution failed. Look above for error messages"
_INTERRUPTED = "Terminating processes on user request"
# The end of a job that failed, told with its log; 137 is 128 + SIGKILL, of a shell.
_FAILED_JOB = re.compile(r"CalledProcessError[\s\S]*(?:died with <Signals\.|exit status )(\w+)")
_ENDED = "At least one job did not complete"


def show(
    logger: logging.Logger, settings: Any, study: str, summary: Callable[[], str]
) -> Display | None:
    """Put a display in the place of Snakemake's own handler; None where its output is wanted.

    `settings` are Snakemake's output settings; `summary` stands at the end of a study. A handler of
    another plugin is left alone.
    """
    if os.environ.get(CHOICE) == SNAKEMAKE or settings.verbose or settings.debug_dag:
        return None
    for handler in logger.handlers:
        if handler.name == REPLACED and isinstance(handler, logging.StreamHandler):
            display = Display(study, summary, handler, settings)
            logger.removeHandler(handler)
            logger.addHandler(display)
            return display
    return None


class Display(logging.Handler):
    """Prints the events of a study; `emit` is called by all threads of Snakemake."""

    def __init__(
        self,
        study: str,
        summary: Callable[[], str],
        replaced: logging.StreamHandler[Any],
        settings: Any,
    ) -> None:
        super().__init__()
        use_stand_ins()
        self.study, self.summary = study, summary
        self._dry_run = DryRun() if settings.dryrun else None
        for each in replaced.filters:
            self.addFilter(each)  # they are --quiet
        self._quiet = bool(settings.quiet)
        self._formatter = replaced.formatter
        stream = replaced.stream
        self.console = Console(
            file=stream,
            highlight=False,
            markup=False,
            emoji=False,
            no_color=settings.nocolor or None,
            width=None if stream.isatty() or "COLUMNS" in os.environ else WIDTH,
        )
        self._live = Live(
            console=self.console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self.jobs: dict[int, Job] = {}  # that run, by Snakemake's number
        self.done = self.total = 0
        self.failed: dict[int, Job] = {}
        self.stopped: dict[int, Job] = {}  # interrupted
        self._began, self._told = time.time(), time.monotonic()
        self._interrupted, self._exit = False, ""
        self._end = threading.Event()
        if self._dry_run is None:
            take()

    # --- messages of Snakemake ---

    def emit(self, record: logging.LogRecord) -> None:
        """Print a message, or the event that it tells."""
        try:
            event = str(getattr(record, "event", None) or "message")
            known = getattr(self, f"_on_{event}", None)
            if known is not None:
                known(record)
            elif event == "debug_dag" and self._formatter is not None:
                self._print(self._formatter.format(record))
        except Exception:
            self.handleError(record)

    def _on_run_info(self, record: Any) -> None:
        if self._dry_run is not None:
            self._dry_run.counts = dict(record.stats)
            return
        first, self.total = not self.total, record.stats.get("total", 0)
        if first:
            self._print(f"Study {self.study}: {self.total} jobs.", "bold")
            self._watch()

    def _on_job_info(self, record: Any) -> None:
        job = of_record(record)
        if self._dry_run is not None:
            self._dry_run.add(job, record.reason, getattr(record, "rule_msg", None))
            return
        self.jobs[record.jobid] = job
        for before in (self.failed, self.stopped):
            if before.pop(record.jobid, None) is not None:
                self._print(f"again: {job.name}")

    def _on_job_finished(self, record: Any) -> None:
        job = self.jobs.pop(record.job_id, None)
        self.done += 1
        if job is None:
            return
        self._warn(job)
        if job.told:
            words = job.outcome()
            text = f"{self._count()} {job.name}: {words}{', ' * bool(words)}{job.duration}"
            self._print(text, "yellow" if words.startswith(("stopped", "STOPPED")) else "")

    def _on_job_error(self, record: Any) -> None:
        job = self.jobs.pop(record.jobid, None) or of_record(record)
        self._warn(job)
        exit_code, self._exit = self._exit, ""
        if self._interrupted or exit_code == str(EXIT_INTERRUPTED):
            self.stopped[record.jobid] = job  # it has said, by a warning, where it resumes
            return
        self.failed[record.jobid] = job
        told, log = failure(of_record(record).logs or job.logs)
        lines = (told or "it has left no log").splitlines()
        more = ["…"] * (len(lines) > ERROR_LINES)
        how = f", exit {exit_code}" if exit_code else ""
        self._print(f"FAILED {job.name}, after {job.duration}{how}:", "bold red")
        for line in [*lines[:ERROR_LINES], *more]:
            self._print(f"  {line}")
        if log is not None:
            self._print(f"  log: {log}")

    def _on_group_error(self, record: Any) -> None:
        for each in record.job_error_info:
            self._on_job_error(logging.makeLogRecord({**each, "wildcards": None}))

    def _on_progress(self, record: Any) -> None:
        self.done, self.total = record.done, record.total

    def _on_error(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if _ENDED in text:
            self._conclude()
        elif (match := _FAILED_JOB.search(text)) is not None:
            self._exit = match[1]
        else:
            self._print(text, "red")

    def _on_message(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text.startswith(_INTERRUPTED):
            self._interrupted = True
            self._print("Interrupted: runs save their states, and end …", "yellow")
        elif text not in ("None", "", _JOB_FAILED) and (
            record.levelno > logging.INFO or not text.startswith(_NOISE)
        ):
            self._print(text, "yellow" if record.levelno > logging.INFO else "")
            if text.startswith("Nothing to be done") and self._dry_run is None:
                print(self.summary(), flush=True)

    # --- the end ---

    def close(self) -> None:
        """Take down the live view; a dry run prints its jobs."""
        if self._dry_run is not None and (lines := self._dry_run.lines(self.console.width)):
            self._print("\n".join(lines))
            self._dry_run = None
        self.pause()
        super().close()

    def pause(self) -> None:
        """Take down the live view, for others to print."""
        self._end.set()  # its thread may wait for the lock that is held here: it is not joined
        self._live.stop()

    def _conclude(self) -> None:
        """Say where a study that has not finished resumes."""
        self.pause()
        for job in self.jobs.values():
            self._warn(job)
        of = f"{self.done} of {self.total} jobs are done"
        if self._interrupted:
            self.stopped |= self.jobs
        if self.stopped:
            names = ", ".join(job.name for job in self.stopped.values() if job.works)
            text = f"Interrupted: {of}. Run the same command again to resume from there"
            self._print(text + (f"; these begin with it: {names}." if names else "."), "bold")
        elif self._interrupted:
            self._print(f"Interrupted: {of}. Run the same command again to go on.", "bold")
        if self.failed:
            failed = ", ".join(job.name for job in self.failed.values())
            self._print(f"{of}, {len(self.failed)} failed: {failed}.", "bold red")
            self._print("Their errors are above. Run the same command again for the rest.")

    # --- jobs that run ---

    def _watch(self) -> None:
        if self.console.is_terminal:
            self._live.start()
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        while not self._end.wait(SECONDS):
            self.acquire()
            try:
                if not self._end.is_set():
                    self._look()
            finally:
                self.release()

    def _look(self) -> None:
        """Read the logs, and show how far the jobs are."""
        for job in self.jobs.values():
            self._warn(job)
        if self.console.is_terminal:
            self._live.update(self._view(), refresh=True)
        elif time.monotonic() - self._told > SECONDS_BETWEEN_LINES and not self._quiet:
            for line in self._running():
                self._print(line)

    def _warn(self, job: Job) -> None:
        for text in job.read():
            self._print(f"{job.name}: {text}", "yellow")

    def _running(self) -> Iterator[str]:
        """Yield a line of progress for each job that runs."""
        for job in self.jobs.values():
            if job.works:
                yield f"{self._count()} {job.name}: {', '.join(filter(None, _cells(job)[1:]))}"

    def _view(self) -> Text:
        """Return the live view: a line for all jobs, and one for each that runs."""
        running = [job for job in self.jobs.values() if job.works]
        passed = tqdm.format_interval(time.time() - self._began)
        lines = [f"{self.done} of {self.total} jobs done, {len(running)} running, {passed}"]
        rows = [_cells(job) for job in running[:ROOM]]
        far, left = (max((len(row[i]) for row in rows), default=0) for i in (1, 2))
        room = self.console.width - far - left - 7  # of names and metrics, and gaps
        size = min(max((len(row[0]) for row in rows), default=0), max(room * 2 // 3, 20))
        for name, done, time_left, words in rows:
            line = f"{cut(name, size):<{size}}  {done:>{far}}  {time_left:>{left}}  {words}"
            lines.append(line[: self.console.width - ECHO])
        if len(running) > ROOM:
            lines.append(f"and {len(running) - ROOM} more")
        return Text("\n".join(lines), no_wrap=True)

    def _count(self) -> str:
        size = len(str(self.total))
        return f"[{self.done:>{size}}/{self.total}]"

    def _print(self, text: str, style: str = "") -> None:
        self._told = time.monotonic()
        for line in fit(text, max(self.console.width, 40)):
            self.console.print(Text(line, style=style), soft_wrap=True)


def end(display: Display | None, summary: Callable[[], str]) -> None:
    """Print the summary when a study has ended, above the last words of the display."""
    if display is not None:
        display.pause()
    print(summary(), flush=True)


def _cells(job: Job) -> tuple[str, str, str, str]:
    """Return the name of a job, how far it is, the time left, and its metrics."""
    reading = job.reading
    if reading is None:
        return job.name, "", job.duration, job.said
    left = f"{reading.left} left" if reading.left else job.duration
    return job.name, f"{reading.unit} {reading.done}/{reading.of}", left, reading.words
