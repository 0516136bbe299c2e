"""The page of a study: complete, without a network, and the answer that the numbers give."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import fake
import pytest

from etrm.evaluation.statistics import clopper_pearson
from etrm.report.experiment_record import write_record
from etrm.report.page.answer import answer
from etrm.report.page.build import write_page
from etrm.report.page.sections import cost, health, looked_at_test, verdicts
from etrm.report.registry import FIGURES, TABLES
from etrm.report.run_view import RunView, distinct
from etrm.report.write_tables import write_tables

CAPTIONS = Path(__file__).parents[2] / "workflow" / "report"
SECTIONS = {
    *("answer", "results", "verdicts", "figures", "health", "test", "cost", "tables", "records"),
    "configuration",
}
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
VOID = {"meta", "link", "img", "br", "hr", "col", "wbr"}
HOSTILE = '<script>alert(1)</script> ![x](http://elsewhere.example/x.png) <b onclick="x">'


@pytest.fixture(scope="module")
def page(views: list[RunView], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the fake study, with a record that someone has written strange things into."""
    root = tmp_path_factory.mktemp("results") / "fake"
    write_tables(views, root / "tables", "etrm_standard_h16")
    (root / "figures").mkdir()
    for name in FIGURES:
        (root / "figures" / f"{name}.png").write_bytes(PNG)
    for name in distinct(view.experiment for view in views):
        mine = [view for view in views if view.experiment == name]
        write_record(root / "records" / f"{name}.md", mine, goal=HOSTILE)
    (root / "config.yaml").write_text(f"study: fake # {HOSTILE}\n", encoding="utf-8")
    return write_page(root / "index.html", views, CAPTIONS, baseline="etrm_standard_h16")


class Elements(HTMLParser):
    """The elements of a page with their attributes; fails where one is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def of(self, tag: str) -> Iterator[dict[str, str | None]]:
        return (attributes for name, attributes in self.found if name == tag)


def test_every_section_figure_table_and_record_is_there(page: Path, views: list[RunView]) -> None:
    text = page.read_text(encoding="utf-8")
    found = Elements(text)
    ids = {attributes["id"] for _, attributes in found.found if "id" in attributes}
    assert ids >= SECTIONS
    assert ids >= {f"figure-{name}" for name in FIGURES}
    assert ids >= {f"record-{view.experiment}" for view in views}
    links = {a["href"] for a in found.of("a") if (a["href"] or "").startswith("#")}
    assert links <= {f"#{each}" for each in ids}
    captions = re.findall(r"<strong>([^<]+)\.</strong>", text)
    assert len(captions) >= len(FIGURES) + 2  # results and comparisons have rows
    assert len(TABLES) > 2


def test_nothing_is_loaded_from_elsewhere(page: Path) -> None:
    """Whatever someone writes into a goal, a record or the configuration."""
    text = page.read_text(encoding="utf-8")
    found = Elements(text)
    sources = [attributes["src"] or "" for _, attributes in found.found if "src" in attributes]
    assert len(sources) == len(FIGURES)
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert [attributes["href"] for attributes in found.of("link")] == ["data:,"]
    assert len(list(found.of("script"))) == 1
    assert not any(name.startswith("on") for _, attributes in found.found for name in attributes)
    assert not re.search(r"@import|url\(", text)
    assert "<iframe" not in text
    assert text.count("alert(1)") == text.count("&lt;script&gt;alert(1)") >= 2


def test_the_analysis_of_a_person_is_shown_once_there_is_one(
    page: Path, views: list[RunView]
) -> None:
    assert ">Next steps<" not in page.read_text(encoding="utf-8")
    record = page.parent / "records" / "trm.md"
    before = record.read_text(encoding="utf-8")
    record.write_text(f"{before}- train **longer** {HOSTILE}\n", encoding="utf-8")
    text = write_page(page.with_name("other.html"), views, CAPTIONS).read_text(encoding="utf-8")
    record.write_text(before, encoding="utf-8")
    assert ">Next steps<" in text
    assert "train <strong>longer</strong> &lt;script&gt;" in text
    assert "&lt;!--" not in text


def test_a_figure_that_no_browser_shows_is_named(page: Path, views: list[RunView]) -> None:
    (page.parent / "figures" / "refinement.png").rename(page.parent / "figures" / "refinement.pdf")
    try:
        text = write_page(page.with_name("other.html"), views, CAPTIONS).read_text(encoding="utf-8")
    finally:
        (page.parent / "figures/refinement.pdf").rename(page.parent / "figures/refinement.png")
    assert len(list(Elements(text).of("img"))) == len(FIGURES) - 1
    assert "figures/refinement is in no format" in text


def test_the_same_study_gives_the_same_page(page: Path, views: list[RunView]) -> None:
    again = write_page(page.with_name("again.html"), views, CAPTIONS, baseline="etrm_standard_h16")
    assert again.read_bytes() == page.read_bytes()


def validated(folder: Path, name: str, solved: int, exact: float, **scored: int) -> RunView:
    result = fake.score(solved=solved, tasks=40, **scored)
    view = fake.run(folder, experiment=name, stage="full", steps=100, scored=result)
    return replace(view, metrics=view.metrics.assign(**{"validation.exact_accuracy": exact}))


def test_the_answer_is_about_the_best_on_validation_tasks(tmp_path: Path) -> None:
    """The one that is best on held-out tasks, where many were tried, is too good."""
    views = [
        validated(tmp_path, "lucky", solved=9, exact=0.1),
        validated(tmp_path, "chosen", solved=4, exact=0.3),
        validated(tmp_path, "leaked", solved=40, exact=0.9, seen=40),
        fake.run(
            tmp_path,
            **{"experiment": "unvalidated", "stage": "full", "steps": 100},
            scored=fake.score(solved=30, tasks=40),
        ),
    ]
    low, high = clopper_pearson(4, 40)
    first, *others = answer(views, "lucky")
    assert "`chosen`" in first
    assert "10.0 % of 40 held-out tasks" in first
    assert f"{100 * low:.1f} % to {100 * high:.1f} %" in first
    assert "leaked" not in " ".join([first, *others])
    assert "−12.5" in " ".join(others)  # points, against the baseline


def test_the_answer_without_validation_says_that_the_best_was_chosen(tmp_path: Path) -> None:
    def one(name: str, solved: int) -> RunView:
        scored = fake.score(solved=solved, tasks=40)
        return fake.run(tmp_path, experiment=name, stage="full", steps=100, scored=scored)

    views = [one("worse", 1), one("better", 2)]
    assert "`better`" in answer(views)[0]
    assert "too good" in answer(views)[1]
    assert "too good" not in " ".join(answer(views[:1]))


def test_runs_on_other_sources_answer_another_question(tmp_path: Path) -> None:
    """A control on easy tasks is not the answer, however well it does."""

    def on(*sources: str, name: str, solved: int) -> RunView:
        view = validated(tmp_path, name, solved, exact=solved / 40)
        return replace(view, run=view.run | {"config": {**view.run["config"], "sources": sources}})

    control = on("world", name="control", solved=40)
    views = [control, on("arc", name="etrm", solved=0), on("arc", name="other", solved=1)]
    lines = answer(views, "etrm")
    assert "`other`" in lines[0]
    assert "of 2 encoders" in lines[1]
    (last,) = [line for line in lines if "`control`" in line]
    assert last.startswith("With tasks of `world`: ")
    assert "100.0 % of 40" in last


def test_a_study_without_a_score_answers_with_its_gates(tmp_path: Path) -> None:
    views = [fake.run(tmp_path, steps=100), fake.run(tmp_path, seed=1, steps=100, starved=True)]
    assert "1 of 2 overfit runs" in answer(views)[0]
    trm = fake.run(
        tmp_path,
        **{"experiment": "trm", "stage": "pretrain", "kind": "trm", "split": "transductive"},
        **{"steps": 100, "scored": fake.score(solved=9, tasks=20, seen=20)},
    )
    assert "45.0 % of 20" in answer([*views, trm])[-1]


def test_verdicts_have_their_evidence(views: list[RunView]) -> None:
    rows = {row[0]: row for row in verdicts(views).rows}
    assert rows["`etrm_standard_h16`"][2:5] == ("passed", "95.0 %", "≥ 90.0 %")
    assert rows["`etrm_cached_control`"][2:4] == ("stopped", "12.5 %")
    assert "`gradient_starvation`" in rows["`etrm_cached_control`"][5]
    assert next(iter(rows)) == "`etrm_cached_control`"
    assert len(rows) == 3


def test_health_events_are_those_of_the_runs(tmp_path: Path) -> None:
    well = fake.run(tmp_path, experiment="well", steps=100)
    ill = fake.run(tmp_path, experiment="ill", steps=110, stopped_early=fake.EVENT["finding"])
    (row,) = health([well, ill]).rows
    assert row[0].startswith("`ill`")
    assert row[1:4] == ("stop", "`gradient_starvation`", "110 of 110")


def test_looks_at_test_are_counted(views: list[RunView]) -> None:
    words, table = looked_at_test(views, ("etrm_standard_h16",))
    assert words.startswith("3 of 4 experiments")  # one only initialises decoders
    assert "etrm_standard_h16" in words
    assert [(row[1], row[2]) for row in table.rows] == [("1", "20 of 20")] * 3


def test_costs_are_sums_over_ranks_seeds_and_jobs(tmp_path: Path) -> None:
    one = fake.run(tmp_path, stage="full", steps=100, scored=fake.score(solved=1, tasks=20))
    two = fake.run(tmp_path, stage="full", seed=1, steps=100)
    gpu = {"device": "NVIDIA H100", "ranks": 4}
    views = [
        replace(
            one,
            run=one.run | {"seconds": 3600.0} | gpu,
            score={**(one.score or {}), "seconds": 1800.0},
        ),
        replace(two, run=two.run | {"seconds": 7200.0} | gpu),
    ]
    words, table = cost(views)
    assert "**12.0 hours** on NVIDIA H100" in words  # 4 × (1 + 2)
    assert "**0.5 hours** on cpu" in words
    assert [(row[1], row[2], row[5]) for row in table.rows] == [
        ("full", "2", "12.0"),
        ("evaluation", "1", "0.5"),
    ]


PROBE = """<script>
const errors = [];
addEventListener("error", (event) => errors.push(String(event.message)));
addEventListener("load", () => {
  const images = [...document.images].map((image) => image.naturalWidth);
  const [inner, scroll] = [innerWidth, document.documentElement.scrollWidth];
  parent.postMessage(JSON.stringify({images, errors, inner, scroll}), "*");
});
</script>"""
# In a frame, since the window of a browser has a least width.
FRAME = """<!doctype html>
<script>
addEventListener("message", (event) => { document.title = `PROBE${event.data}PROBE`; });
</script>
<iframe src="page.html" width="%d" height="900" style="border: 0"></iframe>"""
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@pytest.mark.skipif(BROWSER is None, reason="found no Chromium to open the page in")
@pytest.mark.parametrize("width", [400, 1400])
def test_the_page_opens_in_a_browser(page: Path, tmp_path: Path, width: int) -> None:
    """Without network: every image is shown, no error is said, nothing is wider than the window."""
    text = page.read_text(encoding="utf-8").replace("<head>", f"<head>{PROBE}", 1)
    probed = tmp_path / "page.html"
    probed.write_text(text.replace("<details", "<details open"), encoding="utf-8")
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME % width, encoding="utf-8")
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000"]
    command += ["--proxy-server=127.0.0.1:9", "--enable-logging=stderr", frame.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(re.findall(r"PROBE(\{.*\})PROBE", done.stdout)[0])
    assert found["errors"] == []
    assert "CONSOLE" not in done.stderr
    assert len(found["images"]) == len(FIGURES)
    assert all(natural > 0 for natural in found["images"])
    assert found["inner"] == width
    assert found["scroll"] <= width
