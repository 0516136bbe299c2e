EVALUATION = ROOT / "evaluation/{experiment}/seed{seed}"
# Experiments whose evaluation is one job; that of the others is shared by several.
ALONE = {name for name, c in STUDY.experiments.items() if c.evaluation.jobs == 1}


rule evaluate:
    input:
        verdicts(),
        lambda wildcards: scores_of(going(LAYOUT.scored())),
    localrule: True


# A part's file stays until all parts are gathered: when one fails, the others are not lost.
rule evaluate_part:
    input:
        tasks=LAYOUT.tasks,
        augmentations=LAYOUT.augmentations,
        run=lambda wildcards: LAYOUT.run_files(scored_run(wildcards)),
    output:
        temp(EVALUATION / PART_FILE),
    log:
        ROOT / "logs/{experiment}/evaluate_seed{seed}_{part}_of_{parts}.log",
    conda:
        ENVIRONMENT
    threads: STUDY.threads
    resources:
        **SITE.resources("evaluate"),
    params:
        evaluation=evaluation_of,
        code=code_digest("etrm.evaluation.run"),
        script=code_of_script("evaluate_part"),
        state=LAYOUT.state,
    script:
        "../scripts/evaluate_part.py"


rule evaluate_run:
    input:
        tasks=LAYOUT.tasks,
        augmentations=LAYOUT.augmentations,
        run=lambda wildcards: LAYOUT.run_files(scored_run(wildcards)),
    output:
        multiext(str(EVALUATION) + "/", *SCORE_FILES),
    log:
        ROOT / "logs/{experiment}/evaluate_seed{seed}.log",
    wildcard_constraints:
        experiment=names(ALONE),
    conda:
        ENVIRONMENT
    threads: STUDY.threads
    resources:
        **SITE.resources("evaluate"),
    params:
        evaluation=evaluation_of,
        code=code_digest("etrm.evaluation.run"),
        script=code_of_script("evaluate"),
        state=LAYOUT.state,
    script:
        "../scripts/evaluate.py"


rule evaluate_gather:
    input:
        tasks=LAYOUT.tasks,
        augmentations=LAYOUT.augmentations,
        run=lambda wildcards: LAYOUT.run_files(scored_run(wildcards)),
        parts=lambda wildcards: LAYOUT.part_files(scored_run(wildcards)),
    output:
        multiext(str(EVALUATION) + "/", *SCORE_FILES),
    log:
        ROOT / "logs/{experiment}/evaluate_seed{seed}.log",
    wildcard_constraints:
        experiment=names(set(STUDY.experiments) - ALONE),
    localrule: True
    conda:
        ENVIRONMENT
    params:
        evaluation=evaluation_of,
        code=code_digest("etrm.evaluation.run"),
        script=code_of_script("evaluate"),
        state=LAYOUT.state,
    script:
        "../scripts/evaluate.py"
