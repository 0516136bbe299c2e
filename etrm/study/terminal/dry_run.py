"""The jobs of a dry run: a line for each rule, with its experiments, and the reasons."""

from __future__ import annotations

from collections import Counter, defaultdict

from etrm.config.text import first_few
from etrm.runtime.terminal import fit
from etrm.study.terminal.jobs import Job


class DryRun:
    """Collects the jobs that Snakemake lists one by one."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}  # jobs by rule, in the order of the rules, and `total`
        self._of: dict[str, Counter[str]] = defaultdict(Counter)  # rule: its jobs by experiment
        self._why: dict[str, Counter[str]] = defaultdict(Counter)  # rule: its jobs by reason
        self._said: dict[str, dict[str, None]] = defaultdict(dict)  # rule: messages of its jobs

    def add(self, job: Job, reason: str, message: str | None = None) -> None:
        """Add a job; Snakemake's reason begins with its kind: `Missing output files: …`.

        `message`: that of its rule, if it has one.
        """
        if message:
            self._said[job.rule][message] = None
        self._of[job.rule][job.wildcards.get("experiment", "")] += 1
        kinds = [part.split(":")[0].strip() for part in reason.split("; ") if part]
        self._why[job.rule][kinds[0] if kinds else ""] += 1

    def lines(self, width: int) -> list[str]:
        """Return the jobs, no wider than `width`; nothing where there are none."""
        if not self.counts:
            return []
        size = max(map(len, self.counts))
        lines = [f"{self.counts['total']} jobs would run:"]
        for rule, count in self.counts.items():
            if rule == "total":
                continue
            names = [name for name in self._of[rule] if name]
            of = f" {', '.join(first_few(names, 3))}" if names else ""
            why = "; ".join(why.lower() for why in self._why[rule] if why)
            head = f"  {rule:<{size}} {count:>5} "
            lines += fit(f"{head}{of}{' - ' * bool(of and why) or ' '}{why}", width, " " * 4)
            lines += [part for said in self._said[rule] for part in fit(f"    {said}", width, "")]
        text = (
            "Nothing was done. `etrm plan` says why, stage by stage, and the cost;"
            " --verbose lists the jobs one by one, with their files."
        )
        return [*lines, *fit(text, width, "")]
