EVALUATION = ROOT / "evaluation/{experiment}/seed{seed}"
# Finalists. The evaluation of some is one job; that of the others is shared by several.
SCORED = {run.experiment for run in LAYOUT.scored()}
ALONE = {name for name in SCORED if STUDY.experiments[name].evaluation.jobs == 1}


rule evaluate:
    input:
        verdicts(),
        lambda wildcards: scores_of(going(LAYOUT.scored())),
    localrule: True


# A shard's file stays until all shards are gathered: when one fails, the others are not lost.
rule evaluate_shard:
    input:
        tasks=LAYOUT.tasks,
        augmentations=LAYOUT.augmentations,
        run=lambda wildcards: LAYOUT.run_files(scored_run(wildcards)),
    output:
        temp(EVALUATION / SHARD_FILE),
    log:
        ROOT / "logs/{experiment}/evaluate_seed{seed}_{shard}_of_{shards}.log",
    wildcard_constraints:
        experiment=names(SCORED - ALONE),
    conda:
        ENVIRONMENT
    threads: STUDY.threads
    resources:
        **SITE.resources("evaluate"),
    params:
        evaluation=settings_of("evaluation"),
        code=code_of_result("evaluation"),
        script=code_of_script("evaluate_shard"),
        state=LAYOUT.state,
    script:
        "../scripts/evaluate_shard.py"


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
        evaluation=settings_of("evaluation"),
        code=code_of_result("evaluation"),
        script=code_of_script("evaluate"),
        state=LAYOUT.state,
    script:
        "../scripts/evaluate.py"


rule merge_shards:
    input:
        tasks=LAYOUT.tasks,
        augmentations=LAYOUT.augmentations,
        run=lambda wildcards: LAYOUT.run_files(scored_run(wildcards)),
        shards=lambda wildcards: LAYOUT.shard_files(scored_run(wildcards)),
    output:
        multiext(str(EVALUATION) + "/", *SCORE_FILES),
    log:
        ROOT / "logs/{experiment}/evaluate_seed{seed}.log",
    wildcard_constraints:
        experiment=names(SCORED - ALONE),
    localrule: True
    conda:
        ENVIRONMENT
    params:
        evaluation=settings_of("evaluation"),
        code=code_of_result("evaluation"),
        script=code_of_script("evaluate"),
        state=LAYOUT.state,
    script:
        "../scripts/evaluate.py"


# Search guided by the demos, and its controls: on the finished run, beside its evaluation.
rule refine:
    input:
        verdicts(),
        lambda wildcards: scores_of(going(LAYOUT.refined()), "refinement"),
    localrule: True


rule refine_run:
    input:
        tasks=LAYOUT.tasks,
        augmentations=LAYOUT.augmentations,
        run=lambda wildcards: LAYOUT.run_files(scored_run(wildcards)),
    output:
        multiext(
            str(ROOT / "refinement/{experiment}/seed{seed}") + "/", *REFINEMENT_FILES
        ),
    log:
        ROOT / "logs/{experiment}/refine_seed{seed}.log",
    wildcard_constraints:
        experiment=names({run.experiment for run in LAYOUT.refined()}),
    conda:
        ENVIRONMENT
    threads: STUDY.threads
    resources:
        **SITE.resources("evaluate"),
    params:
        refinement=settings_of("refinement"),
        code=code_of_result("refinement"),
        script=code_of_script("refine"),
        state=LAYOUT.state,
    script:
        "../scripts/refine.py"


# Candidates answer validation tasks, and the best of them are chosen: no held-out task is asked.
rule validate:
    input:
        verdicts(),
    localrule: True


rule validate_run:
    input:
        tasks=LAYOUT.tasks,
        augmentations=LAYOUT.augmentations,
        run=lambda wildcards: LAYOUT.run_files(run_of(wildcards, "full")),
    output:
        multiext(
            str(ROOT / "validation/{experiment}/seed{seed}") + "/", *VALIDATION_FILES
        ),
    log:
        ROOT / "logs/{experiment}/validate_seed{seed}.log",
    wildcard_constraints:
        experiment=names({run.experiment for run in LAYOUT.validated()}),
    conda:
        ENVIRONMENT
    threads: STUDY.threads
    resources:
        **SITE.resources("evaluate"),
    params:
        validation=settings_of("validation"),
        code=code_of_result("validation"),
        script=code_of_script("validate"),
        state=LAYOUT.state,
    script:
        "../scripts/validate.py"


checkpoint select:
    input:
        lambda wildcards: verdicts_of(STUDY.candidates(wildcards.selection)),
        validations=lambda wildcards: validations_of(wildcards.selection),
    output:
        # Not deleted while it is made anew: who asks for it then has the one before.
        update(ROOT / "selections/{selection}.json"),
    log:
        ROOT / "logs/select_{selection}.log",
    wildcard_constraints:
        selection=names(STUDY.selections),
    localrule: True
    conda:
        ENVIRONMENT
    params:
        rule=lambda wildcards: plain(STUDY.selections[wildcards.selection]),
        chooses=lambda wildcards: of_how_many(LAYOUT, wildcards.selection),
        candidates=lambda wildcards: STUDY.candidates(wildcards.selection),
        code=code_digest("etrm.evaluation.selection:choose"),
        script=code_of_script("select"),
    message:
        "selection {wildcards.selection}: the {params.chooses}; the runs that follow are known then"
    script:
        "../scripts/select.py"
