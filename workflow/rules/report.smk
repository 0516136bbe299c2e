# Figures, tables, records and the HTML report: what a study says.


rule figures:
    input:
        runs=finished,
        tasks=LAYOUT.tasks,
    output:
        [path for name in FIGURES for path in figure(name)],
    log:
        ROOT / "logs/figures.log",
    localrule: True
    conda:
        ENVIRONMENT
    params:
        style=plain(STUDY.figures),
        health=plain(next(iter(STUDY.experiments.values())).health),
        code=code_digest(
            "etrm.report.write_figures", "etrm.report.collect", *modules(FIGURES)
        ),
        script=code_of_script("figures"),
    script:
        "../scripts/figures.py"


rule tables:
    input:
        runs=finished,
    output:
        [path for name in TABLES for path in table(name)],
    log:
        ROOT / "logs/tables.log",
    localrule: True
    conda:
        ENVIRONMENT
    params:
        baseline=STUDY.baseline,
        finalists=LAYOUT.finalists,
        code=code_digest(
            "etrm.report.write_tables", "etrm.report.collect", *modules(TABLES)
        ),
        script=code_of_script("tables"),
    script:
        "../scripts/tables.py"


rule record:
    input:
        runs=of_experiment,
    output:
        # Not removed before it is written anew: its analysis is a person's.
        update(
            report(
                ROOT / "records/{experiment}.md",
                caption="../report/record.rst",
                category="3 Experiment records",
                labels={"experiment": "{experiment}"},
            )
        ),
    log:
        ROOT / "logs/{experiment}/record.log",
    localrule: True
    conda:
        ENVIRONMENT
    params:
        goal=lambda wildcards: STUDY.experiments[wildcards.experiment].description,
        baseline=STUDY.baseline,
        code=code_digest("etrm.report.experiment_record", "etrm.report.collect"),
        script=code_of_script("record"),
    script:
        "../scripts/record.py"


rule records:
    input:
        verdicts(),
        records,
    localrule: True


rule resolved_config:
    input:
        written_config,
    output:
        report(
            LAYOUT.config,
            caption="../report/config.rst",
            category="4 Configuration",
            labels={"file": "resolved configuration"},
        ),
    log:
        ROOT / "logs/config.log",
    localrule: True
    conda:
        ENVIRONMENT
    params:
        script=code_of_script("config"),
    script:
        "../scripts/config.py"


rule page:
    input:
        LAYOUT.figure_files(),
        LAYOUT.table_files(),
        records,
        LAYOUT.config,
        runs=finished,
    output:
        LAYOUT.page,
    log:
        ROOT / "logs/page.log",
    localrule: True
    conda:
        ENVIRONMENT
    params:
        baseline=STUDY.baseline,
        finalists=lambda wildcards: LAYOUT.finalists and shown(LAYOUT.finalists),
        code=code_digest("etrm.report.page.build", "etrm.report.collect"),
        look=look_of_captions(PAGE),
        script=code_of_script("page"),
    script:
        "../scripts/page.py"


rule paper:
    input:
        LAYOUT.figure_files(),
        LAYOUT.table_files(),
        runs=finished,
    output:
        LAYOUT.paper_files(),
    log:
        ROOT / "logs/paper.log",
    localrule: True
    conda:
        ENVIRONMENT
    params:
        study=STUDY.study,
        formats=plain(STUDY.figures)["formats"],
        baseline=STUDY.baseline,
        code=code_digest("etrm.report.paper", "etrm.report.collect"),
        look=look_of_captions(),
        script=code_of_script("paper"),
    script:
        "../scripts/paper.py"


rule report:
    input:
        rules.figures.output,
        rules.tables.output,
        verdicts(),
        records,
        config=LAYOUT.config,
        runs=finished,
    output:
        LAYOUT.report,
    log:
        ROOT / "logs/report.log",
    localrule: True
    conda:
        ENVIRONMENT
    params:
        baseline=STUDY.baseline,
        code=code_digest("etrm.report.page.answer", "etrm.report.collect"),
        targets=["figures", "tables", "records", "resolved_config"],
        script=code_of_script("report"),
    script:
        "../scripts/report.py"


# A target for each group of experiments: their runs, evaluations and records.
for group, members in LAYOUT.groups().items():

    rule:
        name:
            group
        input:
            lambda wildcards, members=members: of_group(members),
        localrule: True
