"""A selection among candidates, by their validation."""

from pathlib import Path

from etrm.runtime.logs import job_log, say
from etrm.study.selection import rule_of, write_selection

with job_log(snakemake.log[0]):
    name, params = snakemake.wildcards.selection, snakemake.params
    files = [Path(path) for path in snakemake.input.validations]
    out = Path(snakemake.output[0])
    record = write_selection(name, rule_of(params.rule), params.candidates, files, out)
    count = f"{len(record['chosen'])} of {len(params.candidates)}"
    say(f"selection {name}: {count} chosen: {', '.join(record['chosen']) or 'none'}")
