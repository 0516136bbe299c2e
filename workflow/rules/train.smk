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


for stage, gated in {
    "pretrain": {},
    "overfit": {},
    "full": {"verdict": gate_of, "selection": selection_of},
}.items():

    rule:
        name:
            f"train_{stage}"
        input:
            **gated,
            tasks=LAYOUT.tasks,
            augmentations=LAYOUT.augmentations,
            parent=parent_of(stage),
        output:
            multiext(str(RUN / f"{stage}/seed{{seed}}") + "/", *RUN_FILES),
        log:
            ROOT / f"logs/{{experiment}}/{stage}_seed{{seed}}.log",
        conda:
            ENVIRONMENT
        threads: STUDY.threads
        resources:
            **SITE.resources(stage, **SIZE),
        params:
            run=config_of(stage),
            parent=parent_path_of(stage),
            origin=origin_of(stage),
            code=code_of,
            script=code_of_script("train"),
            state=LAYOUT.state,
            wandb=LAYOUT.wandb,
        # The name of the file does not depend on `stage`, which has its last value in a job.
        script:
            "../scripts/train.py"


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
