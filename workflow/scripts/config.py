"""The configuration as it was resolved: base, defaults and differences applied."""

from pathlib import Path

from etrm.runtime.logs import job_log
from etrm.storage.files import atomic_write

with job_log(snakemake.log[0]), atomic_write(Path(snakemake.output[0])) as path:
    path.write_text(snakemake.config["resolved"], encoding="utf-8")
