"""Stage `tasks`: sources of ARC tasks to one table."""

from pathlib import Path

from etrm.config.data import DataConfig
from etrm.config.schema import parse
from etrm.data.prepare import prepare_tasks
from etrm.runtime.logs import job_log, say

with job_log(snakemake.log[0]):
    data = parse(DataConfig, snakemake.params.data, "data")
    say(prepare_tasks(data, Path(snakemake.output[0])))
