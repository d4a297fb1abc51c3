import math
import pickle

import pytest
from hypothesis import given, strategies as st

from sandbox.events import TimerVal

seconds = st.floats(0, 9e9, allow_nan=False)


def test_timer_val_is_fluent_and_leaves_the_first_as_it_was():
    first = TimerVal()
    second = first.after(0.5).every(1.0)
    assert TimerVal() == first
    assert TimerVal(first=0.5, interval=1.0) == second


@given(after=seconds, every=seconds)
def test_timer_val_order_of_calls_does_not_matter(after, every):
    assert TimerVal().after(after).every(every) == TimerVal().every(every).after(after)


def test_timer_val_after_replaces_at():
    assert TimerVal(first=1) == TimerVal().at(5, cancel_on_set=True).after(1)


def test_timer_val_hashes_and_pickles():
    value = TimerVal().at(5, cancel_on_set=True).every(2)
    assert value == pickle.loads(pickle.dumps(value))
    assert 1 == len({value, TimerVal(5, 2, True, True)})


def test_timer_val_says_whether_it_expires_at_all():
    values = [TimerVal(), TimerVal().after(0), TimerVal().every(1)]
    assert [False, True, True] == [value.enabled for value in values]
    assert not TimerVal()


def test_timer_val_butter_spellings():
    assert TimerVal().after(1).every(2) == TimerVal().offset(1).repeats(2) == TimerVal().offset(1).repeat(2)


@pytest.mark.parametrize("bad", [-1, -1e-9, math.inf, math.nan, 1e10, 2**63])
@pytest.mark.parametrize("call", [TimerVal().after, TimerVal().every, TimerVal().at])
def test_timer_val_out_of_range_is_a_value_error(bad, call):
    with pytest.raises(ValueError, match="must be between 0 and 9223372036 seconds"):
        call(bad)


@pytest.mark.parametrize("bad", ["1", True, None, 1j])
def test_timer_val_that_is_no_number_is_a_type_error(bad):
    with pytest.raises(TypeError, match="must be a number of seconds"):
        TimerVal().every(bad)


def test_timer_val_cancel_on_set_needs_an_absolute_time():
    with pytest.raises(ValueError, match="cancel_on_set needs an absolute time"):
        TimerVal(first=1, cancel_on_set=True)
    with pytest.raises(ValueError, match="absolute needs a first expiration"):
        TimerVal(absolute=True)


def test_timer_val_cannot_be_changed():
    with pytest.raises(AttributeError):
        TimerVal().first = 1
