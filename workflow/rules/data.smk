rule generate:
    output:
        "{folder}/{generated}.parquet",
    log:
        "{folder}/{generated}.log",
    wildcard_constraints:
        folder="|".join(re.escape(str(Path(p).parent)) for p in LAYOUT.generated)
        or "(?!)",
        generated="|".join(re.escape(Path(p).stem) for p in LAYOUT.generated) or "(?!)",
    localrule: True
    conda:
        ENVIRONMENT
    threads: 4
    # No parameters: the name of the file is the digest of all that determines it.
    script:
        "../scripts/generate.py"


rule tasks:
    input:
        ancient([*dict.fromkeys([*LAYOUT.source_files(), *LAYOUT.generated])]),
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
