EVALUATION = ROOT / "evaluation/{experiment}/seed{seed}"


rule evaluate:
    input:
        lambda wildcards: scores_of(going(PIPELINE.scored())),
    localrule: True


# A part's file stays until all parts are gathered: when one fails, the others are not lost.
rule evaluate_part:
    input:
        tasks=PIPELINE.tasks,
        augmentations=PIPELINE.augmentations,
        run=lambda wildcards: PIPELINE.run_files(scored_run(wildcards)),
    output:
        temp(EVALUATION / PART_FILE),
    log:
        ROOT / "logs/{experiment}/evaluate_seed{seed}_{part}_of_{parts}.log",
    conda:
        ENVIRONMENT
    threads: STUDY.threads
    resources:
        gpu=1,
    params:
        evaluation=evaluation_of,
        code=code_digest("etrm.score"),
        state=PIPELINE.state,
    script:
        "../scripts/evaluate_part.py"


# One that only gathers parts needs no GPU.
rule evaluate_run:
    input:
        tasks=PIPELINE.tasks,
        augmentations=PIPELINE.augmentations,
        run=lambda wildcards: PIPELINE.run_files(scored_run(wildcards)),
        parts=parts_of,
    output:
        multiext(str(EVALUATION) + "/", *SCORE_FILES),
    log:
        ROOT / "logs/{experiment}/evaluate_seed{seed}.log",
    conda:
        ENVIRONMENT
    threads: STUDY.threads
    resources:
        gpu=lambda wildcards: 0 if parts_of(wildcards) else 1,
    params:
        evaluation=evaluation_of,
        code=code_digest("etrm.score"),
        state=PIPELINE.state,
    script:
        "../scripts/evaluate.py"
