"""The collector's thresholds: raised where they are Python's own, left alone where the program has chosen."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from duly.boot.collector import THRESHOLDS, look_less_often


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    before, enabled = gc.get_threshold(), gc.isenabled()
    yield
    gc.set_threshold(*before)
    (gc.enable if enabled else gc.disable)()


def test_pythons_own_thresholds_are_raised() -> None:
    gc.set_threshold(700, 10, 10)
    look_less_often()
    assert gc.get_threshold() == THRESHOLDS


def test_thresholds_that_the_program_has_chosen_stay() -> None:
    gc.set_threshold(50_000, 7, 3)
    look_less_often()
    assert gc.get_threshold() == (50_000, 7, 3)


def test_a_collector_that_is_off_stays_as_it_is() -> None:
    gc.set_threshold(700, 10, 10)
    gc.disable()
    look_less_often()
    assert not gc.isenabled()
    assert gc.get_threshold() == (700, 10, 10)
