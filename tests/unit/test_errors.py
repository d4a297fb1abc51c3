import errno
import pickle

import pytest

from sandbox.errors import PolicyError, SandboxError, SetupError, UnsupportedError


def make_setup_error() -> SetupError:
    return SetupError(
        errno.ENOENT,
        step=31,
        steps=84,
        call='open_tree("/srv/data")',
        origin='Sandbox.bind("/srv/data")',
        hint="it must exist",
        filename="/srv/data",
    )


def test_setup_error_is_also_the_class_of_its_errno():
    error = make_setup_error()
    assert isinstance(error, FileNotFoundError)
    assert isinstance(error, SandboxError)
    assert "/srv/data" == error.filename


def test_setup_error_message_names_step_call_origin_and_hint():
    expected = (
        '[Errno 2] step 31 of 84: open_tree("/srv/data"): No such file or directory (ENOENT)\n'
        '  from: Sandbox.bind("/srv/data")\n'
        "  hint: it must exist"
    )
    assert expected == str(make_setup_error())


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EPERM, errno.ENOSPC, 0])
def test_setup_error_pickled_comes_back_whole(number):
    error = SetupError(number, step=1, steps=2, call="x()", origin="o", hint=None, filename="f")
    again = pickle.loads(pickle.dumps(error))
    assert type(error) is type(again)
    assert (str(error), error.filename, error.errno) == (str(again), again.filename, again.errno)


def test_setup_error_without_arguments_can_be_made():
    assert 0 == SetupError().step


def test_unsupported_error_pickled_comes_back_whole():
    error = UnsupportedError("Landlock", needed="Linux 5.13", found="Linux 5.12", fix="a newer kernel")
    again = pickle.loads(pickle.dumps(error))
    assert str(error) == str(again)
    assert "a newer kernel" == again.fix


def test_policy_error_pickled_comes_back_whole():
    again = pickle.loads(pickle.dumps(PolicyError("unknown key", path="a.toml", line=3, key="x")))
    assert ("a.toml", 3, "x") == (again.path, again.line, again.key)
