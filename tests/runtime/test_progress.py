"""The pace of a run, and the time that it has left."""

from __future__ import annotations

import pytest

from etrm.runtime import progress
from etrm.runtime.progress import Progress, Reading


def test_the_time_left_is_that_of_the_pace_since_it_resumed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 100.0, *[130.0] * 9])  # start, resumed, and now
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with Progress("name", 1000, True, True, "prediction") as shown:
        shown.begin(400)  # the first 400 were made by another process
        shown.pace(460)  # 60 in 30 s; 540 are left
    printed = capsys.readouterr().err
    assert Reading.of_line(printed) == Reading("prediction", 460, 1000, "04:30", "2 a second")


def test_before_anything_is_done_the_time_left_is_not_known(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Progress("name", 10, True, True) as shown:
        shown.pace(0)
    found = Reading.of_line(capsys.readouterr().err)
    assert found is not None
    assert (found.done, found.of, found.left) == (0, 10, "")


def test_other_lines_tell_no_progress() -> None:
    for line in ("2026-01-01 12:00:00,1 INFO resuming from step 20 (state/1/step20.state)", ""):
        assert Reading.of_line(line) is None
