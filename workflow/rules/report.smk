# Figures, tables, records and the HTML report: what a study says.


def finished(wildcards):
    """Files of every run that no gate has stopped, with verdicts and evaluations."""
    return [
        *files_of(going(PIPELINE.runs())),
        *verdicts(),
        *scores_of(going(PIPELINE.scored())),
    ]


def of_experiment(wildcards):
    """Files of one experiment's runs, and of the baseline that its record compares with."""
    mine = lambda runs: [r for r in runs if r.experiment == wildcards.experiment]
    baseline = [str(PIPELINE.folder(r) / "run.json") for r in PIPELINE.baseline(wildcards.experiment)]
    metrics = [str(Path(path).with_name("metrics.parquet")) for path in baseline]
    own = [
        *files_of(going(mine(PIPELINE.runs()))),
        *(str(PIPELINE.verdict(r.experiment, r.seed)) for r in mine(PIPELINE.runs("overfit"))),
        *scores_of(going(mine(PIPELINE.scored()))),
    ]
    return list(dict.fromkeys([*own, *baseline, *metrics]))


def figure(name):
    """One figure in all formats; the first goes into the report."""
    first, *rest = [path for path in PIPELINE.figure_files() if Path(path).stem == name]
    shown = report(
        first,
        caption=f"../report/{name}.rst",
        category="2 Figures",
        labels={"figure": name.replace("_", " ")},
    )
    return [shown, *rest]


rule figures:
    input:
        runs=finished,
        tasks=PIPELINE.tasks,
    output:
        [path for name in FIGURES for path in figure(name)],
    log:
        ROOT / "logs/figures.log",
    params:
        style=plain(STUDY.figures),
        health=plain(next(iter(STUDY.experiments.values())).health),
        code=code_digest("etrm.report.write", "etrm.report.collect"),
    conda:
        ENVIRONMENT
    script:
        "../scripts/figures.py"


rule tables:
    input:
        runs=finished,
    output:
        report(
            ROOT / "tables/results.html",
            caption="../report/results_table.rst",
            category="1 Results",
            labels={"table": "results"},
        ),
        multiext(str(ROOT / "tables/results"), *(f".{f}" for f in TABLE_FORMATS)),
    log:
        ROOT / "logs/tables.log",
    params:
        code=code_digest("etrm.report.tables", "etrm.report.collect"),
    conda:
        ENVIRONMENT
    script:
        "../scripts/tables.py"


rule record:
    input:
        runs=of_experiment,
    output:
        report(
            ROOT / "records/{experiment}.md",
            caption="../report/record.rst",
            category="3 Experiment records",
            labels={"experiment": "{experiment}"},
        ),
    log:
        ROOT / "logs/{experiment}/record.log",
    params:
        goal=lambda wildcards: STUDY.experiments[wildcards.experiment].description,
        code=code_digest("etrm.report.records", "etrm.report.collect"),
    conda:
        ENVIRONMENT
    script:
        "../scripts/record.py"


rule records:
    input:
        expand(ROOT / "records/{experiment}.md", experiment=STUDY.experiments),
    localrule: True


rule resolved_config:
    output:
        report(
            PIPELINE.config,
            caption="../report/config.rst",
            category="4 Configuration",
            labels={"file": "resolved configuration"},
        ),
    log:
        ROOT / "logs/config.log",
    params:
        study=plain(STUDY),
    conda:
        ENVIRONMENT
    script:
        "../scripts/config.py"


rule report:
    input:
        rules.figures.output,
        rules.tables.output,
        rules.records.input,
        config=PIPELINE.config,
    output:
        PIPELINE.report,
    log:
        ROOT / "logs/report.log",
    params:
        targets=["figures", "tables", "records", "resolved_config"],
    conda:
        ENVIRONMENT
    script:
        "../scripts/report.py"
