"""The verdict on an overfit run. It always succeeds: failing the gate is a result."""

from pathlib import Path

from etrm.config.health import GateConfig, HealthConfig
from etrm.config.schema import parse
from etrm.runtime.logs import job_log, say
from etrm.study.gate import outcome
from etrm.training.health import write_verdict

with job_log(snakemake.log[0]):
    health = parse(HealthConfig, snakemake.params.health, "health")
    gate = parse(GateConfig, snakemake.params.gate, "gate")
    folder, out = Path(snakemake.input.run).parent, Path(snakemake.output[0])
    verdict = write_verdict(folder, out, health, gate)
    say(outcome(verdict))
