"""The frozen dataclasses whose methods are not written by `dataclass`."""

import copy
import dataclasses
import pickle
import re

import pytest

from sandbox.frozen import Frozen


class Point(Frozen):
    """A value of these tests."""

    x: int
    y: int = 2
    names: list[str] = dataclasses.field(default_factory=list)


class Other(Frozen):
    """The same fields under another name."""

    x: int
    y: int = 2
    names: list[str] = dataclasses.field(default_factory=list)


def test_fields_are_given_by_place_or_name_and_the_rest_has_its_default():
    for point in (Point(1, 2, []), Point(1), Point(x=1), Point(1, names=[])):
        assert (1, 2, []) == (point.x, point.y, point.names)


def test_default_that_can_change_is_made_for_each():
    assert Point(1).names is not Point(1).names


@pytest.mark.parametrize(
    ("values", "named", "message"),
    [
        ((), {}, "Point() needs a value for x"),
        ((1, 2, [], 4), {}, "Point() takes 3 values at most, got 4"),
        ((1,), {"x": 1}, "Point() got two values for x"),
        ((1,), {"z": 1, "w": 2}, "Point() has no field w"),
    ],
)
def test_wrong_fields_are_refused(values, named, message):
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        Point(*values, **named)


def test_equal_is_what_has_the_same_type_and_fields():
    assert Point(1) == Point(1, 2, [])
    assert Point(1) != Point(2)
    assert Point(1) != Other(1)
    assert Point(1) != (1, 2, [])


def test_hash_is_that_of_the_fields():
    assert hash(Point(1, 2, ())) == hash(Point(1, 2, ()))
    with pytest.raises(TypeError, match="unhashable"):
        hash(Point(1))


def test_nothing_can_be_set_or_deleted():
    point = Point(1)
    with pytest.raises(dataclasses.FrozenInstanceError, match=r"^x of a value cannot be changed: dataclasses\.replace"):
        point.x = 2
    with pytest.raises(dataclasses.FrozenInstanceError, match=r"^x of a value cannot be deleted$"):
        del point.x
    assert 1 == point.x


def test_the_functions_of_dataclasses_take_it():
    point = Point(1, 5, ["a"])
    assert dataclasses.is_dataclass(point)
    assert ["x", "y", "names"] == [field.name for field in dataclasses.fields(point)]
    assert Point(7, 5, ["a"]) == dataclasses.replace(point, x=7)
    assert {"x": 1, "y": 5, "names": ["a"]} == dataclasses.asdict(point)


def test_it_is_shown_matched_copied_and_pickled():
    point = Point(1, 5, ["a"])
    assert "Point(x=1, y=5, names=['a'])" == repr(point)
    match point:
        case Point(x, y):
            assert (1, 5) == (x, y)
    for again in (copy.copy(point), copy.deepcopy(point), pickle.loads(pickle.dumps(point))):
        assert again == point
