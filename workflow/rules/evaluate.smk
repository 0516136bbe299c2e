rule evaluate:
    input:
        lambda wildcards: scores_of(going(PIPELINE.scored())),
    localrule: True


def scored_run(wildcards):
    return run_of(wildcards, STUDY.experiments[wildcards.experiment].scored_stage)


rule evaluate_run:
    input:
        tasks=PIPELINE.tasks,
        augmentations=PIPELINE.augmentations,
        run=lambda wildcards: PIPELINE.run_files(scored_run(wildcards)),
    output:
        multiext(str(ROOT / "evaluation/{experiment}/seed{seed}") + "/", *SCORE_FILES),
    log:
        ROOT / "logs/{experiment}/evaluate_seed{seed}.log",
    params:
        evaluation=lambda wildcards: plain(STUDY.experiments[wildcards.experiment].evaluation),
        code=code_digest("etrm.score"),
    threads: STUDY.threads
    conda:
        ENVIRONMENT
    script:
        "../scripts/evaluate.py"
