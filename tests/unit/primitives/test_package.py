import enum
import inspect
import pkgutil
import re
import subprocess
import sys

import pytest

from sandbox import primitives

FAMILIES = sorted(module.name for module in pkgutil.iter_modules(primitives.__path__) if module.name[0] != "_")
FUNCTIONS = sorted(name for name in primitives.__all__ if inspect.isfunction(getattr(primitives, name)))
ENUMS = sorted(name for name in primitives.__all__ if isinstance(getattr(primitives, name), enum.EnumType))


def family_module(family):
    return getattr(__import__(f"sandbox.primitives.{family}").primitives, family)


def test_families_are_all_listed():
    assert FAMILIES == sorted(primitives._FAMILIES)


def test_no_exported_name_is_a_module():
    assert set() == set(primitives.__all__) & set(FAMILIES)


def test_no_name_is_exported_twice():
    assert len(set(primitives.__all__)) == len(primitives.__all__)


@pytest.mark.parametrize("family", FAMILIES)
def test_family_exports_every_flag_that_it_defines(family):
    module = family_module(family)
    own = {name for name in vars(module) if re.fullmatch(r"[A-Z]+_[A-Z0-9_]+", name) and name != "TYPE_CHECKING"}
    own -= {name for other in FAMILIES if other != family for name in family_module(other).__all__}
    assert own - set(module.__all__) <= {"RW_MAX"}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_docstring_ends_with_man_page_and_version(name):
    last = inspect.getdoc(getattr(primitives, name)).splitlines()[-1]
    assert re.fullmatch(r"See .*\w+\(\w+\)\. Since Linux \d+\.\d+.*\.", last)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_docstring_says_what_is_raised(name):
    assert "Raises:" in inspect.getdoc(getattr(primitives, name))


@pytest.mark.parametrize("name", ENUMS)
def test_enum_member_has_its_c_name_too(name):
    members = getattr(primitives, name).__members__
    exported = {id(getattr(primitives, one)): one for one in primitives.__all__}
    assert [] == [member for member in members if id(members[member]) not in exported]


def test_one_family_loads_without_the_others():
    code = (
        "import sys, sandbox.primitives.system as s;"
        "print(sorted(m.rpartition('.')[2] for m in sys.modules if m.startswith('sandbox.primitives.')))"
    )
    output = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stdout
    assert "['_call', 'system']\n" == output
