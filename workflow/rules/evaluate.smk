rule evaluate:
    input:
        lambda wildcards: scores_of(going(PIPELINE.scored())),
    localrule: True


rule evaluate_run:
    input:
        tasks=PIPELINE.tasks,
        augmentations=PIPELINE.augmentations,
        run=lambda wildcards: PIPELINE.run_files(scored_run(wildcards)),
    output:
        multiext(str(ROOT / "evaluation/{experiment}/seed{seed}") + "/", *SCORE_FILES),
    log:
        ROOT / "logs/{experiment}/evaluate_seed{seed}.log",
    conda:
        ENVIRONMENT
    threads: STUDY.threads
    resources:
        **SITE.gpus(1),
        runtime=SITE.minutes("evaluate"),
    params:
        evaluation=lambda wildcards: plain(
            STUDY.experiments[wildcards.experiment].evaluation
        ),
        code=code_digest("etrm.score"),
        state=PIPELINE.state,
    script:
        "../scripts/evaluate.py"
