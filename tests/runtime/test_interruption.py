"""A signal that ends a process at once says so, whenever it arrives."""

from __future__ import annotations

import signal

import pytest

from etrm.runtime.interruption import Interrupted, Interruption


def test_a_signal_at_the_end_of_a_block_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """It may arrive between the last line of the block and the end of it."""

    def leave() -> None:
        with Interruption() as interruption:
            block = interruption.at_once("before the first step", "again")
            block.__enter__()
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted):
        leave()
    assert "SIGTERM: stopped before the first step; again" in capsys.readouterr().err
