"""The configuration as it was resolved: base, defaults and differences applied."""

from pathlib import Path

import yaml

from etrm.data.files import atomic_write
from etrm.logs import job_log

with job_log(snakemake.log[0]), atomic_write(Path(snakemake.output[0])) as path:
    text = yaml.safe_dump(snakemake.params.study, sort_keys=False, allow_unicode=True)
    path.write_text(text, encoding="utf-8")
