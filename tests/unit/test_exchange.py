"""Exchange: what goes in and comes out, without a process."""

import os

import pytest

from sandbox.exchange import Exchange, decoder


def drive(exchange):
    """Do all that can be done without another writer or reader."""
    for fd in list(exchange.waiting):
        try:
            while exchange.ready(fd):
                pass
            exchange.finish(fd)
        except BlockingIOError:
            continue


def test_exchange_feeds_and_closes_stdin():
    read_end, write_end = os.pipe()
    stdin = open(write_end, "wb", 0)
    exchange = Exchange(stdin, None, None, b"hello")
    drive(exchange)
    assert (True, {}) == (stdin.closed, exchange.waiting)
    assert b"hello" == os.read(read_end, 100)
    assert (None, None) == exchange.output()
    os.close(read_end)


def test_exchange_without_input_closes_stdin_at_once():
    read_end, write_end = os.pipe()
    stdin = open(write_end, "wb", 0)
    assert {} == Exchange(stdin, None, None, None).waiting
    assert stdin.closed
    os.close(read_end)


def test_exchange_whose_reader_is_gone_is_done_with_it():
    read_end, write_end = os.pipe()
    os.close(read_end)
    stdin = open(write_end, "wb", 0)
    exchange = Exchange(stdin, None, None, b"x" * 100_000)
    assert not exchange.ready(write_end)
    exchange.finish(write_end)
    assert stdin.closed


def test_exchange_rest_does_not_wait_for_other_writers():
    read_end, write_end = os.pipe()
    with open(read_end, "rb", 0) as stdout:
        exchange = Exchange(None, stdout, None, None)
        os.write(write_end, b"last")
        exchange.rest()
        assert (b"last", None) == exchange.output()
    os.close(write_end)


@pytest.mark.parametrize(
    ("encoding", "errors", "data", "expected"),
    [
        ("utf-8", None, "ä\r\nb\rc\n".encode(), "ä\nb\nc\n"),
        ("latin-1", None, b"\xe4", "ä"),
        ("ascii", "replace", b"\xe4", "\ufffd"),
    ],
)
def test_decoder_translates_newlines(encoding, errors, data, expected):
    assert expected == decoder(encoding, errors)(data)
