# Three stages of one trainer, and the gate between the last two.
RUN = ROOT / "runs/{experiment}"
SIZE = {"gpus": STUDY.execution.gpus, "nodes": STUDY.execution.nodes}


rule pretrain:
    input:
        files_of(LAYOUT.runs("pretrain")),
    localrule: True


rule overfit:
    input:
        files_of(LAYOUT.runs("overfit")),
    localrule: True


rule gate:
    input:
        verdicts(),
    localrule: True


rule full:
    input:
        verdicts(),
        lambda wildcards: files_of(going(LAYOUT.runs("full"))),
    localrule: True


rule train_pretrain:
    input:
        tasks=LAYOUT.tasks,
        augmentations=LAYOUT.augmentations,
        parent=parent_of("pretrain"),
    output:
        multiext(str(RUN / "pretrain/seed{seed}") + "/", *RUN_FILES),
    log:
        ROOT / "logs/{experiment}/pretrain_seed{seed}.log",
    conda:
        ENVIRONMENT
    threads: STUDY.threads
    resources:
        **SITE.resources("pretrain", **SIZE),
    params:
        run=config_of("pretrain"),
        parent=parent_path_of("pretrain"),
        origin=origin_of("pretrain"),
        code=code_of,
        script=code_of_script("train"),
        state=LAYOUT.state,
        wandb=LAYOUT.wandb,
    script:
        "../scripts/train.py"


use rule train_pretrain as train_overfit with:
    input:
        tasks=LAYOUT.tasks,
        augmentations=LAYOUT.augmentations,
        parent=parent_of("overfit"),
    output:
        multiext(str(RUN / "overfit/seed{seed}") + "/", *RUN_FILES),
    log:
        ROOT / "logs/{experiment}/overfit_seed{seed}.log",
    resources:
        **SITE.resources("overfit", **SIZE),
    params:
        run=config_of("overfit"),
        parent=parent_path_of("overfit"),
        origin=origin_of("overfit"),
        code=code_of,
        script=code_of_script("train"),
        state=LAYOUT.state,
        wandb=LAYOUT.wandb,


use rule train_pretrain as train_full with:
    input:
        tasks=LAYOUT.tasks,
        augmentations=LAYOUT.augmentations,
        parent=parent_of("full"),
        verdict=gate_of,
        selection=selection_of,
    output:
        multiext(str(RUN / "full/seed{seed}") + "/", *RUN_FILES),
    log:
        ROOT / "logs/{experiment}/full_seed{seed}.log",
    resources:
        **SITE.resources("full", **SIZE),
    params:
        run=config_of("full"),
        parent=parent_path_of("full"),
        origin=origin_of("full"),
        code=code_of,
        script=code_of_script("train"),
        state=LAYOUT.state,
        wandb=LAYOUT.wandb,


checkpoint verdict:
    input:
        metrics=RUN / "overfit/seed{seed}/metrics.parquet",
        run=RUN / "overfit/seed{seed}/run.json",
    output:
        # Not deleted while it is made anew: who asks for it then has the one before.
        update(RUN / "overfit/seed{seed}/verdict.json"),
    log:
        ROOT / "logs/{experiment}/verdict_seed{seed}.log",
    localrule: True
    conda:
        ENVIRONMENT
    params:
        gate=lambda wildcards: plain(STUDY.experiments[wildcards.experiment].gate),
        health=lambda wildcards: plain(STUDY.experiments[wildcards.experiment].health),
        code=code_digest("etrm.training.health:write_verdict"),
        script=code_of_script("verdict"),
    script:
        "../scripts/verdict.py"
