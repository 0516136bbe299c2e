"""Stage `augment`: the recipes of all augmented puzzles."""

from pathlib import Path

from etrm.data.prepare import prepare_augmentations
from etrm.runtime.logs import job_log, say

with job_log(snakemake.log[0]):
    tasks, out = Path(snakemake.input.tasks), Path(snakemake.output[0])
    say(prepare_augmentations(tasks, out, snakemake.params.variants, snakemake.params.seed))
