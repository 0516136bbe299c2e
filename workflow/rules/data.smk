rule tasks:
    input:
        ancient(PIPELINE.source_files()),
    output:
        PIPELINE.tasks,
    log:
        ROOT / "logs/tasks.log",
    localrule: True
    conda:
        ENVIRONMENT
    params:
        data=PIPELINE.data_params(),
        # The content of the sources decides, not the time of their files.
        sources=lambda wildcards: PIPELINE.source_digests(),
        code=code_digest("etrm.data.prepare:prepare_tasks"),
        script=code_of_script("tasks"),
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
        code=code_digest("etrm.data.prepare:prepare_augmentations"),
        script=code_of_script("augment"),
    script:
        "../scripts/augment.py"
