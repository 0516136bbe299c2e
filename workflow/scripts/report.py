"""Stage `report`: Snakemake's own HTML report of everything that is done."""

import os
import subprocess
import sys
from pathlib import Path

import yaml

from etrm.report.collect import collect
from etrm.report.page.answer import answer
from etrm.runtime.logs import job_log
from etrm.storage.files import atomic_write

# The outer run holds the lock of the folder, and waits for this one.
with job_log(snakemake.log[0]), atomic_write(Path(snakemake.output[0])) as path:
    page, landing = path.with_suffix(".html"), path.with_suffix(".yaml")
    views = collect(snakemake.input.runs)
    said = "\n\n".join(answer(views, snakemake.params.baseline))
    # Markdown to reStructuredText; `workflow/report/workflow.rst` shows it.
    environment = os.environ | {"ETRM_ANSWER": said.replace("`", "``")}
    command = [sys.executable, "-m", "snakemake", "--nolock", "--report", str(page)]
    # With numbers of ours the report opens on them and the answer, without on the graph of rules.
    command += ["--report-metadata", str(landing)]
    command += ["--configfile", snakemake.input.config, "--", *snakemake.params.targets]
    try:
        landing.write_text(yaml.safe_dump({"Finished runs": len(views)}), encoding="utf-8")
        with open(snakemake.log[0], "a", encoding="utf-8") as log:
            subprocess.run(command, check=True, stdout=log, stderr=log, env=environment)
        page.rename(path)
    finally:
        landing.unlink(missing_ok=True)
