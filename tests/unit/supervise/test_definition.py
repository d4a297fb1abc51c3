import os
import socket

import pytest

from sandbox import Filter, Notify, Sandbox
from sandbox.supervise import Ready, Restart, Supervisor
from sandbox.supervise.plain import compile_plain


@pytest.fixture
def supervisor():
    with Supervisor() as made:
        yield made


@pytest.mark.parametrize(
    ("name", "args", "options", "error", "words"),
    [
        (1, ["x"], {}, TypeError, "name must be a str"),
        ("", ["x"], {}, ValueError, "1 to 64"),
        ("a/b", ["x"], {}, ValueError, "without / or space"),
        ("a", "x", {}, TypeError, "sequence of words"),
        ("a", [], {}, ValueError, "at least the program"),
        ("a", ["x"], {"sandox": None}, TypeError, "unexpected keyword argument 'sandox'"),
        ("a", ["x"], {"after": "b"}, TypeError, "after must be an iterable"),
        ("a", ["x"], {"after": ["b"]}, ValueError, "'b', which is no service yet"),
        ("a", ["x"], {"after": ["a"]}, ValueError, "circle"),
        ("a", ["x"], {"restart": "always"}, TypeError, "restart must be a Restart"),
        ("a", ["x"], {"ready": 3}, TypeError, "ready must be a Ready"),
        ("a", ["x"], {"ready_timeout": -1}, ValueError, "ready_timeout"),
        ("a", ["x"], {"ready": Ready.ended(), "restart": Restart.always()}, ValueError, "for what ends"),
        ("a", ["x"], {"stop_signal": 65}, ValueError, "stop_signal must be between 1 and 64"),
        ("a", ["x"], {"stop_timeout": "10"}, TypeError, "stop_timeout"),
        ("a", ["x"], {"watchdog": 0}, ValueError, "watchdog"),
        ("a", ["x"], {"reload": True}, TypeError, "reload"),
        ("a", ["x"], {"env": ["A=1"]}, TypeError, "env must be a Mapping"),
        ("a", ["x"], {"env": {"A=": "1"}}, ValueError, "name must not"),
        ("a", ["x"], {"output": 3}, TypeError, "output must be a callable"),
        ("a", ["x"], {"output": "/nonexistent/log"}, FileNotFoundError, "nonexistent"),
        ("a", ["x"], {"sockets": ["x"]}, AttributeError, "fileno"),
        ("a", ["x"], {"sandbox": "box"}, TypeError, "sandbox must be a Sandbox"),
        ("a", ["x"], {"sandbox": Sandbox(), "cwd": "inside"}, ValueError, "cwd must be an absolute path"),
        ("a", ["x"], {"sandbox": Sandbox(), "ready": Ready.tcp(80)}, ValueError, "network of its own"),
        (
            "a",
            ["x"],
            {"sandbox": Sandbox().seccomp(Filter.default().deny("getpid", action=Notify))},
            ValueError,
            "says Notify",
        ),
    ],
)
def test_add_wrong_argument_raises_and_adds_nothing(supervisor, name, args, options, error, words):
    with pytest.raises(error, match=words):
        supervisor.add(name, args, **options)
    assert {} == supervisor.status()


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: Restart("sometimes"), ValueError),
        (lambda: Restart.always(backoff=-1), ValueError),
        (lambda: Restart.always(backoff=float("inf")), ValueError),
        (lambda: Restart.on_failure(limit=-1), ValueError),
        (lambda: Restart.on_failure(limit=1.5), TypeError),
        (lambda: Ready.fd(2), ValueError),
        (lambda: Ready.fd("3"), TypeError),
        (lambda: Ready.tcp(0), ValueError),
        (lambda: Ready.tcp("80"), TypeError),
        (lambda: Ready.tcp(80, "example.org"), ValueError),
        (lambda: Ready.call(3), TypeError),
        (lambda: Ready.call(bool, every=0), ValueError),
    ],
)
def test_value_out_of_range_raises(call, error):
    with pytest.raises(error):
        call()


def test_values_compare_and_pickle():
    import pickle

    for value in (Restart.always(limit=3), Ready.tcp(80, "::1"), Ready.notify()):
        assert value == pickle.loads(pickle.dumps(value))
    assert Restart.on_failure() != Restart.always()


def test_supervisor_refuses_to_pickle(supervisor):
    import pickle

    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(supervisor)


def test_refused_service_closes_its_copies(supervisor):
    with socket.socket() as one:
        supervisor.add("a", ["x"], sockets=[one])
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            with pytest.raises(ValueError, match="taken"):
                supervisor.add("a", ["x"], sockets=[one, one])
        assert before == len(os.listdir("/proc/self/fd"))


def test_ready_fd_that_is_a_sockets_number_raises(supervisor):
    with socket.socket() as one, pytest.raises(ValueError, match=r"Ready.fd\(3\) is the number of a socket"):
        supervisor.add("a", ["true"], sockets=[one], ready=Ready.fd(3))


def test_plain_plan_makes_no_namespace():
    steps = compile_plain((3,), b"/srv").steps
    assert [0] == [int(step.args[0]) for step in steps if step.call == "clone"]
    assert not {"unshare", "setns", "seccomp", "capset"} & {step.call for step in steps}
