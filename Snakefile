# ETRM: from ARC tasks to the paper's figures. `snakemake -n` plans, `snakemake --cores 2` runs.
from pathlib import Path

from snakemake.utils import min_version

min_version("9.20")


if not workflow.overwrite_configfiles:
    # In another working directory without a study of its own, the one that comes with the checkout.
    study = Path("config/config.yaml")

    configfile: study if study.exists() else Path(workflow.basedir) / study


report: "workflow/report/workflow.rst"


include: "workflow/rules/environments.smk"
include: "workflow/rules/common.smk"
include: "workflow/rules/terminal.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"


rule all:
    default_target: True
    input:
        LAYOUT.page,
        LAYOUT.paper_files(),
        LAYOUT.report,
        everything_absent,
    localrule: True
