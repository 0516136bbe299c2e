rule tasks:
    input:
        ancient(LAYOUT.source_files()),
    output:
        LAYOUT.tasks,
    log:
        ROOT / "logs/tasks.log",
    localrule: True
    conda:
        ENVIRONMENT
    params:
        data=LAYOUT.data_params(),
        # The content of the sources decides, not the time of their files.
        sources=lambda wildcards: LAYOUT.source_digests(),
        code=code_digest("etrm.data.prepare:prepare_tasks"),
        script=code_of_script("tasks"),
    script:
        "../scripts/tasks.py"


rule augment:
    input:
        tasks=LAYOUT.tasks,
    output:
        LAYOUT.augmentations,
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
