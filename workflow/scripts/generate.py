"""Generate the pairs of a source, for all studies that have it."""

from etrm.config.schema import parse
from etrm.config.sources import source_kinds
from etrm.data.generate import generate
from etrm.runtime.logs import job_log, say

with job_log(snakemake.log[0]):
    source = snakemake.config["generated"][snakemake.output[0]]
    say(generate(parse(source_kinds()[source["kind"]](), source), snakemake.threads))
