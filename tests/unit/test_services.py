"""Files of services: what they mean, and where they are wrong."""

import os
import signal
import socket

import pytest
from hypothesis import given, strategies as st

from sandbox import PolicyError, Sandbox
from sandbox.services import Address, Output, address, listen, parse_text
from sandbox.supervise import Ready, Restart

HEAD = '[services.a]\ncommand = ["x"]\n'


def one(text: str):
    return parse_text((HEAD + text).encode(), "f.toml")["a"]


def test_services_are_in_the_order_of_after():
    text = '[services.b]\ncommand = ["x"]\nafter = ["a"]\n' + HEAD
    assert ["a", "b"] == list(parse_text(text.encode(), "f.toml"))


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ('restart = "always"', "restart", Restart.always()),
        ('restart = { when = "always", limit = 3 }', "restart", Restart.always(limit=3)),
        ("restart = { backoff = 0.5 }", "restart", Restart.on_failure(backoff=0.5)),
        ('ready = "fd"', "ready", Ready.fd()),
        ("ready = { fd = 7 }", "ready", Ready.fd(7)),
        ('ready = "notify"', "ready", Ready.notify()),
        ('ready = "ended"', "ready", Ready.ended()),
        ("ready = { tcp = 80 }", "ready", Ready.tcp(80)),
        ('ready = { tcp = 80, host = "::1" }', "ready", Ready.tcp(80, "::1")),
        ('stop_signal = "INT"', "stop_signal", signal.SIGINT),
        ('reload = "SIGHUP"', "reload", signal.SIGHUP),
        ("reload = 10", "reload", 10),
        ("watchdog = 5", "watchdog", 5.0),
        ("sandbox = false", "sandbox", None),
        ("sandbox = true", "sandbox", Sandbox()),
        ('sandbox = ["--hostname", "h"]', "sandbox", Sandbox().hostname("h")),
        ('env = { A = "1" }', "env", {"A": "1"}),
    ],
)
def test_services_key_means(text, name, value):
    assert value == one(text).options[name]


def test_services_output_and_sockets():
    service = one('output = { path = "/x", size = "1M", keep = 2 }\nsockets = { http = "127.0.0.1:80", u = "/run/u" }')
    assert Output("/x", 1 << 20, 2) == service.output
    http = Address(socket.AF_INET, ("127.0.0.1", 80))
    assert {"http": http, "u": Address(socket.AF_UNIX, "/run/u")} == service.sockets


@pytest.mark.parametrize(
    ("text", "line", "key", "words"),
    [
        ("x = ", 1, "", "Invalid value"),
        ("[services]", 1, "services", "there is no service"),
        ("[service.a]", 1, "service", r"tables \[services.NAME\]"),
        ("[services.a]", 1, "services.a", "the command is missing"),
        ("[services]\na = 1", 2, "services.a", "a service is a table"),
        (HEAD + "\nrestrat = 1", 4, "services.a.restrat", "did you mean restart"),
        (HEAD + 'restart = "often"', 3, "services.a.restart", "on-failure"),
        (HEAD + "restart = { limit = -1 }", 3, "services.a.restart", "limit must be 0 or more"),
        (HEAD + "restart = { limits = 1 }", 3, "services.a.restart", "limits"),
        (HEAD + "ready = { tcp = 0 }", 3, "services.a.ready", "port must be between"),
        (HEAD + "ready = { http = 80 }", 3, "services.a.ready", "notify"),
        (HEAD + 'stop_signal = "SIGX"', 3, "services.a.stop_signal", "SIGTERM"),
        (HEAD + 'stop_timeout = "1"', 3, "services.a.stop_timeout", "number of seconds"),
        (HEAD + 'sandbox = ["--bnd"]', 3, "services.a.sandbox", "no option --bnd"),
        (HEAD + 'sandbox = ["--timeout", "1"]', 3, "services.a.sandbox", "for sandbox run"),
        (HEAD + 'sockets = { h = "localhost:80" }', 3, "services.a.sockets", "number of an address"),
        (HEAD + 'output = { path = "x", keep = -1 }', 3, "services.a.output", "keep must be between"),
        (HEAD + "env = { A = 1 }", 3, "services.a.env", "table of strings"),
        (HEAD + 'after = ["b"]', 3, "services.a.after", "no service 'b'"),
        (HEAD + 'after = ["a"]', 3, "services.a.after", "circle: a after a"),
        (HEAD + "sandbox = true\nready = { tcp = 80 }", 1, "services.a", "network of its own"),
        ("[services.a]\ncommand = []", 2, "services.a.command", "at least the program"),
    ],
)
def test_services_wrong_file_says_where(text, line, key, words):
    with pytest.raises(PolicyError, match=words) as caught:
        parse_text(text.encode(), "f.toml")
    assert ("f.toml", line, key) == (caught.value.path, caught.value.line, caught.value.key)
    assert str(caught.value).startswith("f.toml")


def test_services_not_utf8_says_where():
    with pytest.raises(PolicyError, match=r"f\.toml:2: not UTF-8"):
        parse_text(b"# x\n\xff", "f.toml")


@given(st.text(max_size=80))
def test_services_any_text_is_a_policy_error_or_fine(text):
    try:
        parse_text((HEAD + text).encode("utf-8", "surrogatepass"), "f.toml")
    except PolicyError as error:
        assert error.path == "f.toml"


@pytest.mark.parametrize("text", ["80", "x:80", "127.0.0.1:99999", "[127.0.0.1]:80", "127.0.0.1:-1", ""])
def test_address_wrong_raises(text):
    with pytest.raises(ValueError, match="must"):
        address(text)


def test_listen_replaces_the_socket_of_a_dead_process(tmp_path):
    path = str(tmp_path / "s")
    listen("x", address(path)).close()
    assert os.path.exists(path)
    with listen("x", address(path)) as alive:
        assert "x" == alive.name
        with pytest.raises(OSError, match="in use"):
            listen("x", address(path))
    (tmp_path / "file").write_text("kept")
    with pytest.raises(OSError, match="in use"):
        listen("x", address(str(tmp_path / "file")))
