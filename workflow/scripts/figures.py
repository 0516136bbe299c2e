"""Stage `figures`: all figures of the study."""

from pathlib import Path

from etrm.config.execution import FigureStyle
from etrm.config.health import HealthConfig
from etrm.config.schema import parse
from etrm.report.collect import collect
from etrm.report.write_figures import write_figures
from etrm.runtime.logs import job_log

with job_log(snakemake.log[0]):
    write_figures(
        collect(snakemake.input.runs),
        tasks_path=Path(snakemake.input.tasks),
        folder=Path(snakemake.output[0]).parent,
        style=parse(FigureStyle, snakemake.params.style, "figures"),
        health=parse(HealthConfig, snakemake.params.health, "health"),
    )
