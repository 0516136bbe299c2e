"""`etrm figures NAME` draws that figure alone, from the finished runs of a study."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import synthetic
import yaml
from small_study import STUDY, write_sources

from etrm.cli import main
from etrm.report.registry import FIGURES, TABLES, modules
from etrm.storage.digests import code_digests

RULES = Path(__file__).parents[2] / "workflow/rules/report.smk"


def call(*arguments: str) -> int:
    return main(["figures", *arguments, "--configfile", "tiny.yaml"])


def test_one_figure_is_drawn_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_sources(tmp_path)
    document = copy.deepcopy(STUDY)
    names = ("trm", "trm_strict", "etrm_standard", "etrm_hybrid")
    first = {"context": {"source": "embedding"}, "decoder": {"init": None}}
    document |= {"baseline": "etrm_standard", "experiments": {key: {} for key in names[2:]}}
    document["experiments"] |= {"trm": {**first, "split": "transductive"}, "trm_strict": first}
    document["defaults"]["decoder"]["init"] = "trm_strict"
    Path("tiny.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    assert call("answer") == 1  # nothing is there yet
    assert "no tasks" in capsys.readouterr().err
    plans = [plan for plan in synthetic.PLANS if plan.name in names[:3]]  # the fourth never ran
    synthetic.write(Path("results/tiny"), plans)
    assert call("answer") == 0
    folder = Path("results/tiny/figures")
    assert capsys.readouterr().out.split() == [str(folder / "answer.png")]
    assert [path.name for path in folder.iterdir()] == ["answer.png"]
    before = (folder / "answer.png").read_bytes()
    assert call("answer") == 0
    assert (folder / "answer.png").read_bytes() == before
    assert call("answer", "answr") == 1
    assert "answr" in capsys.readouterr().err


def test_a_changed_colour_draws_figures_anew_and_no_table() -> None:
    names = {"code_digest": code_digests, "modules": modules, "FIGURES": FIGURES, "TABLES": TABLES}
    found = {}
    for rule in ("figures", "tables"):
        call = re.search(rf"\nrule {rule}:.*?code=(.*?),\n", RULES.read_text(), re.DOTALL)
        assert call is not None
        found[rule] = eval(call[1], names)
    assert "etrm.report.style" in found["figures"]
    assert "etrm.report.style" not in found["tables"]
