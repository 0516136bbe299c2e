"""Stage `report`: Snakemake's own HTML report of everything that is done."""

import subprocess
import sys
from pathlib import Path

from etrm.runtime.logs import job_log
from etrm.storage.files import atomic_write

# The outer run holds the lock of the folder, and waits for this one.
with job_log(snakemake.log[0]), atomic_write(Path(snakemake.output[0])) as path:
    page = path.with_suffix(".html")
    command = [sys.executable, "-m", "snakemake", "--nolock", "--report", str(page)]
    command += ["--configfile", snakemake.input.config, "--", *snakemake.params.targets]
    with open(snakemake.log[0], "a", encoding="utf-8") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log)
    page.rename(path)
