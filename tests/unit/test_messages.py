"""What wrong input is told: the argument, what it got, what would be right. None of this reaches the kernel."""

import asyncio
import math
import os
import re
import sys
from collections.abc import Callable

import pytest

import sandbox
from sandbox import PIPE, STDOUT, Allow, Filter, Kill, Sandbox, Trace, arg, confine
from sandbox.events import Eventfd, Timerfd
from sandbox.supervise import Supervisor

BOX = Sandbox()
CLOSED = 1 << 19  # below the limit of a number inside, above every descriptor


def supervised(**options: object) -> None:
    with Supervisor() as supervisor:
        supervisor.add("a", ["ls"], **options)


# A table of: what is tried, what it raises, and all that is said.
RUN: list[tuple[Callable[[], object], type[BaseException], str]] = [
    (lambda: BOX.run("ls -l"), TypeError, "args must be a sequence of words, not one str: there is no shell"),
    (lambda: BOX.run(None), TypeError, "args must be a sequence of words, such as a list, not NoneType"),
    (lambda: BOX.run({"ls"}), TypeError, "args must be a sequence of words, such as a list, not set"),
    (lambda: BOX.run(w for w in ["ls"]), TypeError, "args must be a sequence of words, such as a list, not generator"),
    (lambda: BOX.run(["sleep", 5]), TypeError, "args must be made of str, bytes or os.PathLike, got 5 as args[1]"),
    (lambda: BOX.run([]), ValueError, "args must hold at least the program"),
    (lambda: BOX.run(["ls"], executable=7), TypeError, "executable must be str, bytes or os.PathLike, not int"),
    (lambda: BOX.run(["a\0b"]), ValueError, r"args must not hold a NUL byte, got ['a\x00b']"),
    (lambda: BOX.run(["ls"], shell=True), TypeError,
     """unexpected keyword argument 'shell': there is no shell but one that is asked for: ["sh", "-c", ...]"""),
    (lambda: BOX.run(["ls"], user="me"), TypeError, "unexpected keyword argument 'user': say Sandbox.user()"),
    (lambda: BOX.run(["ls"], hold=True), TypeError, "unexpected keyword argument 'hold': it is for popen()"),
    (lambda: BOX.run(["ls"], timeuot=1), TypeError,
     ("unexpected keyword argument 'timeuot'; the options are"
      " cwd, env, executable, fds, name, pass_fds, stderr, stdin, stdout")),
    (lambda: BOX.popen(["ls"], timeout=1), TypeError,
     ("unexpected keyword argument 'timeout': it is for run();"
      " say wait(timeout), communicate(timeout=...) or result(timeout)")),
    (lambda: BOX.popen(["ls"], capture_output=True), TypeError,
     "unexpected keyword argument 'capture_output': it is for run(); say stdout=PIPE, stderr=PIPE"),
    (lambda: BOX.run(["ls"], timeout="5"), TypeError, "timeout must be a number of seconds or None, not str"),
    (lambda: BOX.run(["ls"], timeout=math.nan), ValueError,
     "timeout must be at most 2147483 seconds, or None for no limit, got nan"),
    (lambda: BOX.run(["ls"], timeout=math.inf), ValueError,
     "timeout must be at most 2147483 seconds, or None for no limit, got inf"),
    (lambda: BOX.run(["cat"], input="x"), TypeError,
     "input must be bytes, not str; with text=True or an encoding it is str"),
    (lambda: BOX.run(["cat"], input=b"x", text=True), TypeError,
     "input must be str, for text, encoding or errors is given, not bytes"),
    (lambda: BOX.run(["cat"], input=5), TypeError, "input must be bytes, or another buffer, not int"),
    (lambda: BOX.run(["ls"], env="A=1"), TypeError, "env must be a mapping, not str"),
    (lambda: BOX.run(["ls"], env={"A": 1}), TypeError, "env must map str to str, got 'A': 1"),
    (lambda: BOX.run(["ls"], env={b"A": "1"}), TypeError, "env must map str to str, got b'A': '1'"),
    (lambda: BOX.run(["ls"], env={"A=": "1"}), ValueError,
     "an environment variable's name must not be empty or hold '=' or NUL, got 'A='"),
    (lambda: BOX.run(["ls"], cwd="src"), ValueError, "cwd must be an absolute path inside, without NUL, got 'src'"),
    (lambda: BOX.run(["ls"], cwd="/a\0b"), ValueError,
     r"cwd must be an absolute path inside, without NUL, got '/a\x00b'"),
    (lambda: BOX.run(["ls"], cwd=5), TypeError, "cwd must be str, bytes or os.PathLike, not int"),
    (lambda: BOX.run(["ls"], encoding="klingon"), LookupError, "unknown encoding: klingon"),
    (lambda: BOX.run(["ls"], encoding=5), TypeError, "encoding must be a str or None, not int"),
    (lambda: BOX.run(["ls"], errors="ignroe"), LookupError, "unknown error handler name 'ignroe'"),
    (lambda: BOX.popen(["ls"], encoding="klingon"), LookupError, "unknown encoding: klingon"),
    (lambda: BOX.popen(["ls"], bufsize="x"), TypeError, "bufsize must be an int, not str"),
    (lambda: BOX.run(["ls"], stdout="out"), TypeError,
     "stdout must be a descriptor, a file, PIPE, DEVNULL or None, not str"),
    (lambda: BOX.run(["ls"], stdout=CLOSED), OSError, f"[Errno 9] stdout is descriptor {CLOSED}, which is not open"),
    (lambda: BOX.run(["ls"], stdin=-7), ValueError, "stdin must be a descriptor of at least 0, got -7"),
    (lambda: BOX.run(["ls"], stdout=STDOUT), ValueError, "STDOUT can only be used for stderr"),
    (lambda: BOX.run(["ls"], fds=[3]), TypeError, "fds must map numbers inside to descriptors, not list"),
    (lambda: BOX.run(["ls"], fds={0: 1}), ValueError,
     ("fds and pass_fds: a number inside must be at least 3 (stdin, stdout, stderr are the others)"
      " and below 2**20, got 0")),
    (lambda: BOX.run(["ls"], pass_fds=3), TypeError, "pass_fds must be an iterable of descriptors, not int"),
    (lambda: BOX.run(["ls"], pass_fds=[CLOSED]), OSError,
     f"[Errno 9] pass_fds is descriptor {CLOSED}, which is not open"),
    (lambda: BOX.popen(["ls"], pty="yes"), TypeError, "pty must be True, False or (rows, columns), not 'yes'"),
    (lambda: asyncio.run(BOX.popen_async(["ls"], limit="x")), TypeError, "limit must be a number of bytes, not str"),
    (lambda: asyncio.run(BOX.popen_async(["ls"], limit=0)), ValueError, "limit must be 1 or more bytes, got 0"),
    (lambda: asyncio.run(BOX.run_async(["ls"], timeout="5")), TypeError,
     "timeout must be a number of seconds or None, not str"),
    (lambda: sandbox.wait_any([5]), TypeError, "processes must be made of Process or Process_async, not int"),
    (lambda: sandbox.as_completed(5), TypeError, "processes must be an iterable of them, not one int"),
]  # fmt: skip
BUILDER: list[tuple[Callable[[], object], type[BaseException], str]] = [
    (lambda: BOX.bind(5), TypeError, "source must be str, bytes or os.PathLike, not int"),
    (lambda: BOX.bind("~/project", "/work"), ValueError,
     """source must be a path as it is, "~" is the shell's: os.path.expanduser('~/project'), or ./~"""),
    (lambda: BOX.rootfs("~"), ValueError,
     """path must be a path as it is, "~" is the shell's: os.path.expanduser('~'), or ./~"""),
    (lambda: BOX.bind("/srv", exec="no"), TypeError, "exec must be True or False, not 'no'"),
    (lambda: BOX.bind_readonly("/srv", optional="false"), TypeError, "optional must be True or False, not 'false'"),
    (lambda: BOX.rootfs("/srv", readonly="no"), TypeError, "readonly must be True or False, not 'no'"),
    (lambda: BOX.tmpfs("/s", exec=0), TypeError, "exec must be True or False, not 0"),
    (lambda: BOX.tmpfs("/s", mode="755"), TypeError, "mode must be an int, not str"),
    (lambda: BOX.tmpfs("/s", size="lots"), ValueError, """size must be bytes or a string such as "64M", got 'lots'"""),
    (lambda: BOX.proc(hidepid="no"), TypeError, "hidepid must be True or False, not 'no'"),
    (lambda: BOX.user(host_root="no"), TypeError, "host_root must be True or False, not 'no'"),
    (lambda: BOX.user("nobody"), TypeError, "uid must be an int, not str"),
    (lambda: BOX.init("no"), TypeError, "enabled must be True or False, not 'no'"),
    (lambda: BOX.new_session("no"), TypeError, "enabled must be True or False, not 'no'"),
    (lambda: BOX.observe("no"), TypeError, "enabled must be True or False, not 'no'"),
    (lambda: BOX.env([("A", "1")]), TypeError, "mapping must map str to str or None, not list"),
    (lambda: BOX.env(A=5), TypeError, "env must map str to str or None, got 'A': 5"),
    (lambda: BOX.share("network"), ValueError,
     """namespaces must be of "user", "pid", "net", "ipc", "uts", "cgroup", "time", got 'network'"""),
    (lambda: BOX.landlock(connect_tcp=443), TypeError, "connect_tcp must be a list of ports, not int"),
    (lambda: BOX.landlock(read="/usr"), TypeError, "read must be a list of paths, not one str"),
    (lambda: BOX.landlock(read=["/usr"], best_effort="no"), TypeError, "best_effort must be True or False, not 'no'"),
    (lambda: BOX.limit(memory="64X"), ValueError, """memory must be bytes or a string such as "64M", got '64X'"""),
    (lambda: BOX.limit(pids=0), ValueError, "pids must be between 1 and 4194304, got 0"),
    (lambda: BOX.limit(wall_time=0), ValueError, "wall_time must be more than 0 and at most 1e+09 seconds, got 0"),
    (lambda: BOX.limit(pids=5, best_effort="no"), TypeError, "best_effort must be True or False, not 'no'"),
    (lambda: BOX.seccomp("default"), TypeError, "filter must be a Filter or None, not str"),
    (lambda: BOX.seccomp(Filter(Kill)), ValueError,
     ("the filter answers execve with Kill, so that no program could be started: the first call that a sandbox makes"
      ' under it is execve; say .allow("execve")')),
    (lambda: Trace("x"), TypeError, "data must be an int, not str"),
    (lambda: Trace(-1), ValueError, "data must be between 0 and 65535, got -1"),
    (lambda: arg(0).between(5, 1), ValueError, "low must not be more than high, got 5 and 1"),
    (lambda: Filter(Allow).diff(5), TypeError, "other must be a Filter, not int"),
    (lambda: Filter.from_oci('{"defaultAction": "SCMP_ACT_ALLOW"}'), ValueError,
     "source must be a path, or what json.loads() made of the text, not the text itself"),
    (lambda: BOX.limit(cpuset=["0"]), TypeError, "a number in cpuset must be an int, not str"),
    (lambda: BOX.plan(["true"]).with_fault("a", 1), TypeError, "step must be an int, not str"),
    (lambda: confine(filter="x"), TypeError, "filter must be a Filter or None, not str"),
    (lambda: confine(landlock="x"), TypeError, "landlock must be a Landlock or None, not str"),
    (lambda: Timerfd(5), TypeError, "value must be a TimerVal or None, not int"),
    (lambda: Eventfd(-1), ValueError, "value must be between 0 and 4294967295, got -1"),
    (lambda: supervised(cwd=5), TypeError, "cwd must be str, bytes or os.PathLike, not int"),
    (lambda: Filter.from_oci(0), TypeError, "source must be str, bytes or os.PathLike, not int"),
]  # fmt: skip


def identified(table: list[tuple[Callable[[], object], type[BaseException], str]]) -> list[object]:
    return [pytest.param(*row, id=f"{number}-{row[2][:40]}") for number, row in enumerate(table)]


@pytest.mark.parametrize(("attempt", "kind", "said"), identified(RUN))
def test_wrong_command_is_refused_before_anything_runs(attempt, kind, said, monkeypatch):
    def launched(*_: object, **__: object) -> None:
        pytest.fail("it was launched")

    monkeypatch.setattr("sandbox.launcher.Launcher.launch", launched)
    monkeypatch.setattr("sandbox.launcher.Launcher.launch_async", launched)
    with pytest.raises(kind, match=f"^{re.escape(said)}$"):
        attempt()


@pytest.mark.parametrize(("attempt", "kind", "said"), identified(BUILDER))
def test_wrong_description_is_refused_by_the_method_that_got_it(attempt, kind, said):
    with pytest.raises(kind, match=f"^{re.escape(said)}$"):
        attempt()


def test_directory_named_tilde_can_be_bound_as_a_path():
    assert f'"{os.getcwd().rstrip("/")}/~"' in repr(BOX.bind("./~", "/work"))


@pytest.mark.parametrize("bufsize", [None, -1, 0, 1, 4096])
@pytest.mark.needs_userns
def test_bufsize_of_subprocess_is_taken(bufsize):
    with BOX.popen(["echo", "x"], stdout=sandbox.PIPE, bufsize=bufsize) as process:
        assert b"x\n" == process.stdout.read()


@pytest.mark.needs_userns
def test_timeout_that_has_passed_is_one():
    with pytest.raises(sandbox.TimeoutExpired, match="after -1 seconds"):
        BOX.run(["sleep", "60"], timeout=-1)
    with pytest.raises(sandbox.TimeoutExpired):
        BOX.run(["sleep", "60"], timeout=-math.inf)


@pytest.mark.needs_userns
@pytest.mark.parametrize("word", ["TERM", 15.0, None, True])
def test_signal_that_is_no_number_is_refused(word):
    with BOX.popen(["sleep", "60"]) as process:
        with pytest.raises(TypeError, match=r"^signal must be an int, such as signal\.SIGTERM, not "):
            process.send_signal(word)
        process.kill()


@pytest.mark.needs_userns
@pytest.mark.parametrize(
    ("text", "data", "said"),
    [
        (None, "x", "input must be bytes, not str; with text=True or an encoding it is str"),
        (None, 5, "input must be bytes, or another buffer, not int"),
        (True, b"x", "input must be str, for text, encoding or errors is given, not bytes"),
    ],
)
def test_input_that_is_not_of_the_streams_kind_is_refused(text, data, said):
    with BOX.popen(["cat"], stdin=PIPE, stdout=PIPE, text=text) as process:
        with pytest.raises(TypeError, match=f"^{re.escape(said)}$"):
            process.communicate(data)
        assert process.communicate("x" if text else b"x")[0] in {"x", b"x"}


@pytest.mark.needs_userns
def test_input_that_is_no_bytes_is_refused_in_asyncio():
    async def main():
        async with await BOX.popen_async(["cat"], stdin=PIPE, stdout=PIPE) as process:
            with pytest.raises(TypeError, match=r"^input must be bytes, not str"):
                await process.communicate("x")
            assert (b"x", None) == await process.communicate(b"x")

    asyncio.run(main())


@pytest.mark.needs_userns
def test_grace_that_is_no_time_is_refused_before_anything_is_sent():
    with BOX.popen(["sleep", "60"]) as process:
        with pytest.raises(TypeError, match=r"^grace must be a number of seconds or None, not str$"):
            process.stop("10s")
        assert process.poll() is None
        process.kill()


def test_timeout_of_an_event_that_is_no_number_is_refused():
    with (
        Eventfd(1) as counter,
        pytest.raises(TypeError, match=r"^timeout must be a number of seconds or None, not str$"),
    ):
        counter.read_event("x")


@pytest.mark.needs_userns
@pytest.mark.parametrize(
    ("box", "program", "call"),
    [
        (BOX.tmpfs("/usr"), "true", '.tmpfs("/usr")'),
        (BOX.mask("/usr/bin"), "true", '.mask("/usr/bin")'),
        (Sandbox.empty().bind_readonly("/usr").tmpfs("/usr/bin"), "/usr/bin/true", '.tmpfs("/usr/bin")'),
    ],
)
def test_program_that_a_later_call_hides_names_that_call(box, program, call):
    with pytest.raises(FileNotFoundError) as caught:
        box.run([program])
    assert f"hint: {call} hides the host's /usr/bin/true, which was visible until then: leave" in str(caught.value)


@pytest.mark.needs_userns
def test_interpreter_that_a_later_call_hides_names_that_call():
    above = f"/{sys.prefix.split('/')[1]}"
    with pytest.raises(FileNotFoundError) as caught:
        Sandbox.empty().python().tmpfs(above).run([sys.prefix + "/bin/python3"])
    assert f'hint: .tmpfs("{above}") hides the host\'s {sys.prefix}/bin/python3' in str(caught.value)


@pytest.mark.needs_userns
def test_program_that_is_shown_again_is_not_called_hidden():
    box = Sandbox.empty().bind_readonly("/usr").tmpfs("/usr").bind_readonly("/usr/bin")
    with pytest.raises(FileNotFoundError) as caught:
        box.run(["/usr/bin/true"])
    assert "loader" in str(caught.value)
    assert "hides" not in str(caught.value)


@pytest.mark.needs_userns
def test_root_that_is_no_directory_is_told_so():
    with pytest.raises(OSError, match="hint: what is to be the root must be a directory"):
        BOX.rootfs("/etc/passwd").run(["true"])


@pytest.mark.needs_userns
def test_directory_below_a_file_is_told_so():
    with pytest.raises(NotADirectoryError, match="hint: a part of the path is a file, not a directory"):
        BOX.file("/a", "x").dir("/a/b").run(["true"])


@pytest.mark.needs_userns
def test_node_that_the_host_lacks_is_told_so():
    with pytest.raises(FileNotFoundError, match="hint: the host's /dev has no such node: leave it out of nodes"):
        Sandbox.empty().dev(nodes=["nosuch"]).run(["true"])
