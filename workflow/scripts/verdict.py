"""The verdict on an overfit run. It always succeeds: failing the gate is a result."""

from pathlib import Path

from etrm.config import parse
from etrm.config.health import GateConfig, HealthConfig
from etrm.health import write_verdict
from etrm.logs import job_log, say
from etrm.pipeline import describe

with job_log(snakemake.log[0]):
    health = parse(HealthConfig, snakemake.params.health, "health")
    gate = parse(GateConfig, snakemake.params.gate, "gate")
    folder, out = Path(snakemake.input.run).parent, Path(snakemake.output[0])
    verdict = write_verdict(folder, out, health, gate)
    outcome = "passed" if verdict["passed"] else "stopped"
    say(f"{verdict['experiment']}, seed {verdict['seed']}: {outcome}: {describe(verdict)}")
