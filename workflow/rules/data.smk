rule tasks:
    input:
        PIPELINE.source_files(),
    output:
        PIPELINE.tasks,
    log:
        ROOT / "logs/tasks.log",
    localrule: True
    conda:
        ENVIRONMENT
    params:
        data=PIPELINE.data_params(),
        code=code_digest("etrm.data.prepare"),
    script:
        "../scripts/tasks.py"


rule augment:
    input:
        tasks=PIPELINE.tasks,
    output:
        PIPELINE.augmentations,
    log:
        ROOT / "logs/augment.log",
    localrule: True
    conda:
        ENVIRONMENT
    params:
        variants=STUDY.data.variants,
        seed=STUDY.data.seed,
        code=code_digest("etrm.data.prepare"),
    script:
        "../scripts/augment.py"
