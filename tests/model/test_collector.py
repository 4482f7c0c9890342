"""The collector of cyclic garbage while a graph is made."""

import gc

import pytest

from dcil_dsl.model.collector import collector_paused


def test_the_collector_is_off_inside_and_back_after_an_error():
    with pytest.raises(ValueError), collector_paused():
        assert not gc.isenabled()
        raise ValueError
    assert gc.isenabled()


def test_a_collector_that_its_user_switched_off_stays_off():
    gc.disable()
    try:
        with collector_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
