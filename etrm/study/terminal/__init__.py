"""The terminal while Snakemake runs a study: running jobs, outcomes, failures, interruptions."""
