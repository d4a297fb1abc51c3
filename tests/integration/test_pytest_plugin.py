"""The pytest plugin: whatever pytest can do, inside as outside; and whatever a test does, one failed test."""

import os
import pathlib
import re
import time

import harness
import inner_pytest
import pytest

pytestmark = pytest.mark.needs_userns

EVERYTHING = '''
import logging, os, sys, unittest, warnings
import pytest

def note(text):
    with open("notes.txt", "a") as stream:
        stream.write(text + "\\n")

def fixture(scope):
    @pytest.fixture(scope=scope)
    def made():
        note(f"{scope} begins")
        yield scope
        note(f"{scope} ends")
    return made

for_session, for_module, for_class, for_function = map(fixture, ("session", "module", "class", "function"))

class TestFixtures:
    def test_all(self, for_function, for_class, for_module, for_session):
        note("test_all")
    def test_again(self, for_session, for_class, for_function):
        note("test_again")

def test_module_still(for_module, for_session): note("test_module_still")

@pytest.fixture(scope="module", params=["a", "b"])
def letter(request):
    note(f"letter {request.param}")
    yield request.param * 2

@pytest.mark.parametrize("number", [1, 2])
def test_parameters(letter, number): assert letter in ("aa", "bb") and number < 3

@pytest.fixture
def doubled(request): return 2 * request.param

@pytest.mark.parametrize("doubled", [3], indirect=True)
def test_indirect(doubled): assert doubled == 6

def test_assert_rewritten():
    some = {"left": 1, "right": [2, 3]}
    assert some == {"left": 1, "right": [2, 4]}, "they differ"

def test_fails_deep():
    def below(): raise KeyError("deep")
    try: below()
    except KeyError as error: raise RuntimeError("above") from error

@pytest.mark.skip(reason="by mark")
def test_skip_mark(): pass
@pytest.mark.skipif(sys.version_info > (3,), reason="by condition")
def test_skip_condition(): pass
def test_skip_call(): pytest.skip("in the call")
@pytest.fixture
def skips(): pytest.skip("in a fixture")
def test_skip_fixture(skips): pass
@pytest.fixture(scope="module")
def skips_module(): pytest.skip("in a fixture of the module")
def test_skip_wide(skips_module): pass
def test_skip_import(): pytest.importorskip("no_such_module")
@pytest.fixture
def skips_at_end():
    yield
    pytest.skip("at the end")
def test_skip_teardown(skips_at_end): pass

@pytest.mark.xfail(reason="known")
def test_xfail(): assert 0
@pytest.mark.xfail(reason="known")
def test_xpass(): pass
@pytest.mark.xfail(strict=True, reason="strictly")
def test_xpass_strict(): pass
@pytest.mark.xfail(raises=ValueError)
def test_xfail_other(): raise TypeError("another")
@pytest.mark.xfail(run=False)
def test_xfail_not_run(): os.abort()
def test_xfail_call(): pytest.xfail("now")

@pytest.fixture
def breaks(): raise LookupError("in a fixture")
def test_error_setup(breaks): pass
@pytest.fixture(scope="session")
def breaks_wide(): raise LookupError("in a fixture of the session")
def test_error_wide(breaks_wide): pass
def test_error_wide_again(breaks_wide): pass
@pytest.fixture
def breaks_at_end():
    yield
    raise LookupError("at the end")
def test_error_teardown(breaks_at_end): print("before that")
def test_fails_and_error_teardown(breaks_at_end): assert 0

def test_output(): print("to stdout"); os.write(2, b"to fd 2\\n"); assert 0
def test_output_passes(): print("seen with -rA")
def test_capsys(capsys): print("x"); assert capsys.readouterr().out == "x\\n"
def test_capfd(capfd): os.system("echo y"); assert capfd.readouterr().out == "y\\n"
def test_log(caplog):
    logging.getLogger("some").warning("logged %s", 1)
    assert caplog.records[0].args == (1,); assert 0
def test_warns():
    with pytest.warns(UserWarning, match="caught"): warnings.warn("caught")
def test_recwarn(recwarn): warnings.warn("recorded"); assert len(recwarn) == 1
def test_warning(): warnings.warn("not caught", DeprecationWarning)
@pytest.mark.filterwarnings("error")
def test_warning_error(): warnings.warn("raised", RuntimeWarning)
def test_properties(record_property):
    record_property("size", 3)
    record_property("path", __import__("pathlib").Path("x"))
def test_monkeypatch(monkeypatch): monkeypatch.setenv("X", "1"); assert os.environ["X"] == "1"
def test_tmp_path(tmp_path): (tmp_path / "f").write_text("x"); assert (tmp_path / "f").read_text() == "x"
def test_request(request): assert request.getfixturevalue("for_session") == "session"
def test_subtests(subtests):
    for i in range(3):
        with subtests.test("third", i=i): assert i < 2

class TestOld(unittest.TestCase):
    @classmethod
    def setUpClass(cls): note("setUpClass"); cls.shared = [1]
    @classmethod
    def tearDownClass(cls): note("tearDownClass")
    def setUp(self): note("setUp"); self.addCleanup(note, "cleanup")
    def tearDown(self): note("tearDown")
    def test_one(self): self.assertEqual(self.shared, [1])
    def test_two(self): self.assertEqual(self.shared, [2])
    @unittest.skip("old")
    def test_skip(self): pass
    @unittest.expectedFailure
    def test_expected(self): self.fail()
    def test_sub(self):
        for i in range(2):
            with self.subTest(i=i): self.assertEqual(i, 0)

class TestAsync(unittest.IsolatedAsyncioTestCase):
    async def test_async(self):
        import asyncio
        await asyncio.sleep(0)

def documented():
    """
    >>> documented() + 1
    2
    >>> print("wrong")
    right
    """
    return 1
'''


def _comparable(run: inner_pytest.Run) -> list[tuple[object, ...]]:
    for one in run.reports:  # pytest captures its own letter for a subtest of unittest
        one["sections"] = [section for section in one["sections"] if section != ["Captured stdout call", "u"]]
    found = [
        (
            *(one[key] for key in ("id", "when", "outcome", "wasxfail", "text", "properties", "kind")),
            sorted(one["sections"]),
        )
        for one in run.reports
    ]
    return [tuple(re.sub("0x[0-9a-f]+", "0x", str(part)) for part in one) for one in found]


def test_sandbox_option_every_report_is_the_same_as_without(tmp_path: pathlib.Path) -> None:
    runs, notes = [], []
    for arguments in ([], ["--sandbox"]):
        runs.append(inner_pytest.run(tmp_path, "--doctest-modules", *arguments, test_everything=EVERYTHING))
        notes.append((tmp_path / "notes.txt").read_text().splitlines())
        (tmp_path / "notes.txt").unlink()
    plain, inside = runs
    assert len(plain.reports) > 100
    assert _comparable(plain) == _comparable(inside)
    assert sorted(plain.warnings) == sorted(inside.warnings)
    assert notes[0] == notes[1]
    assert plain.status == inside.status == 1


ENDS = """
import ctypes, mmap, os, pathlib, resource, signal, subprocess, sys, threading, time
import pytest

def test_exit_status(): print("printed before"); os._exit(3)
def test_exit_0(): os._exit(0)
def test_kill(): os.kill(os.getpid(), signal.SIGKILL)
def test_term(): os.kill(0, signal.SIGTERM)
def test_abort(): os.write(1, b"written before"); os.abort()
def test_segv(): ctypes.string_at(0)
def test_exec(): os.execv("/bin/true", ["true"])
@pytest.mark.sandbox(timeout=1)
def test_hang():
    for number in range(1, 32):
        if number not in (signal.SIGKILL, signal.SIGSTOP): signal.signal(number, signal.SIG_IGN)
    print("about to hang")
    while True: time.sleep(100)
@pytest.mark.sandbox(timeout=1)
def test_stop(): os.kill(os.getpid(), signal.SIGSTOP)
@pytest.fixture
def exits(): os._exit(4)
def test_exit_in_fixture(exits): pass
@pytest.fixture
def exits_at_end():
    yield
    os._exit(5)
def test_exit_at_end(exits_at_end): pass
def test_returns_twice(): os.fork()
def test_returns_twice_and_fails():
    if os.fork() == 0: raise RuntimeError("in the child")
    os.wait()
def test_closes_everything(): os.closerange(0, 4096)
def test_exhausts_descriptors():
    kept = []
    while True: kept.append(os.open("/dev/null", os.O_RDONLY))
def test_daemon():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            pathlib.Path("daemon").write_text("alive")
            time.sleep(1000)
        os._exit(0)
    os.wait()
    while not os.path.exists("daemon"): time.sleep(0.01)
def test_orphans_are_reaped():
    read, write = os.pipe()
    if os.fork() == 0:
        child = os.fork()
        if child: os.write(write, str(child).encode())
        os._exit(0)
    os.wait()
    orphan = os.read(read, 20).decode()
    while os.path.exists("/proc/" + orphan): time.sleep(0.01)
def test_thread_left(): threading.Thread(target=time.sleep, args=(1000,)).start()
def test_output(): print("x" * 10_000_000)
def test_output_of_many_megabytes(): os.write(1, b"y" * 99_000_000)
def test_text_of_many_megabytes(): pytest.fail("z" * 80_000_000)
def test_exit_called(): raise SystemExit(7)
@pytest.mark.xfail(strict=True)
def test_xfail_killed(): os.abort()
def test_last(): pass
"""

REASONS = {
    "test_exit_status": "the test ended its own process, with exit status 3",
    "test_exit_0": "the test ended its own process, with exit status 0",
    "test_kill": "the process of the test was killed by SIGKILL",
    "test_term": "the process of the test was killed by SIGTERM",
    "test_abort": "the process of the test was killed by SIGABRT",
    "test_segv": "the process of the test was killed by SIGSEGV",
    "test_exec": "the test ended its own process, with exit status 0",
    "test_hang": "the test took longer than sandbox(timeout=1), and was killed with all it had begun",
    "test_stop": "the test took longer than sandbox(timeout=1)",
    "test_exit_in_fixture": "the test ended its own process, with exit status 4",
    "test_exit_at_end": "the test ended its own process, with exit status 5",
    "test_closes_everything": "Bad file descriptor",
    "test_exhausts_descriptors": "Too many open files",
    "test_text_of_many_megabytes": "the reports of the test, with all output, have more than 64 MiB",
    "test_exit_called": "SystemExit: 7",
    "test_xfail_killed": "the process of the test was killed by SIGABRT",
}


def test_whatever_a_test_does_is_one_failed_test_with_its_reason(tmp_path: pathlib.Path) -> None:
    run = inner_pytest.run(tmp_path, "--sandbox", test_ends=ENDS)
    failures = run.failures()
    assert {name: reason for name, reason in REASONS.items() if reason not in failures.get(name, "")} == {}, run.output
    assert set(failures) == set(REASONS)
    calls = [one["id"] for one in run.reports if one["when"] == "call"]
    assert len(calls) == len(set(calls))
    outcomes = run.outcomes()
    assert [name for name in outcomes if outcomes[name] == "passed"] == [
        "test_returns_twice", "test_returns_twice_and_fails", "test_daemon", "test_orphans_are_reaped",
        "test_thread_left", "test_output", "test_output_of_many_megabytes", "test_last",
    ]  # fmt: skip
    sections = {one["id"].partition("::")[2]: dict(one["sections"]) for one in run.reports if one["when"] == "call"}
    assert "printed before" in sections["test_exit_status"]["Captured stdout call"]
    assert "written before" in sections["test_abort"]["Captured stdout call"]
    assert "about to hang" in sections["test_hang"]["Captured stdout call"]
    assert "Segmentation fault" in sections["test_segv"]["Captured stderr call"]
    assert run.status == 1


OUTSIDE = """
import os, socket, tempfile
import pytest

FOLDER = tempfile.mkdtemp(dir="/tmp")

@pytest.fixture(scope="session")
def port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]
    os.rmdir(FOLDER)

def test_folder(port): os.listdir(FOLDER)
@pytest.mark.sandbox(tmp=False)
def test_folder_shown(port): assert os.listdir(FOLDER) == []
def test_nowhere(port): os.listdir("/tmp/no-such-folder")
def test_refused(port): socket.create_connection(("127.0.0.1", port))
@pytest.mark.sandbox(network="host")
def test_reached(port): socket.create_connection(("127.0.0.1", port)).close()
"""


def test_what_was_made_outside_and_is_missed_inside_is_told(tmp_path: pathlib.Path) -> None:
    run = inner_pytest.run(tmp_path, "--sandbox", test_outside=OUTSIDE)
    outcomes = run.outcomes()
    assert [name for name in outcomes if outcomes[name] == "passed"] == ["test_folder_shown", "test_reached"], (
        run.output
    )
    told = {
        one["id"].partition("::")[2]: dict(one["sections"]).get("sandbox", "")
        for one in run.reports
        if one["when"] == "call"
    }
    assert "exists outside" in told["test_folder"]
    assert "tmp=False" in told["test_folder"]
    assert 'network="host"' in told["test_refused"]
    assert told["test_nowhere"] == ""


def test_documentation_its_tests_pass(tmp_path: pathlib.Path) -> None:
    page = (pathlib.Path(harness.REPOSITORY) / "docs" / "pytest.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    run = inner_pytest.run(tmp_path, "--strict-markers", test_page="\n\n".join(blocks))
    assert run.outcomes() == dict.fromkeys(["test_a_node", "test_after_a_year", "test_as_usual", "test_tool"], "passed")
    crash = "the process of the test was killed by SIGSEGV"
    assert crash in page
    run = inner_pytest.run(tmp_path, "--sandbox", test_node="import ctypes\ndef test_crash(): ctypes.string_at(0)")
    assert run.failures()["test_crash"] == crash


MARKS = """
import os, re, socket, subprocess, time
import pytest

def interfaces(): return {line.split(":")[0].strip() for line in open("/proc/net/dev") if ":" in line}

@pytest.mark.sandbox
def test_default():
    assert os.getpid() in (2, 3) and os.getppid() == 1
    assert {name for name in os.listdir("/proc") if name.isdigit()} == {"1", str(os.getpid())}
    assert interfaces() == {"lo"}
    server = socket.create_server(("127.0.0.1", 4711)); socket.create_connection(("127.0.0.1", 4711))
    socket.create_server(("::1", 4711), family=socket.AF_INET6)
    assert os.listdir("/var/tmp") == os.listdir("/dev/shm") == []
    with open("/tmp/same", "x"), open("/dev/shm/same", "x"): pass
    assert os.getsid(0) == 1 and os.getpid() != os.getpgid(0)
    assert os.access("/proc/self/fd", os.R_OK)

@pytest.mark.sandbox(network="none")
def test_network_none():
    assert interfaces() == {"lo"}
    with pytest.raises(OSError, match="unreachable"): socket.create_connection(("127.0.0.1", 4711))

@pytest.mark.sandbox(network="host")
def test_network_host(): assert os.readlink("/proc/self/ns/net") == os.environ["NET_OUTSIDE"]

@pytest.mark.sandbox(hostname="node7")
def test_hostname(): assert socket.gethostname() == "node7"

@pytest.mark.sandbox(tmp=False)
def test_tmp_false(): assert os.path.exists(os.environ["FILE_OUTSIDE"])

@pytest.mark.sandbox
def test_tmp_true(): assert not os.path.exists(os.environ["FILE_OUTSIDE"])

@pytest.mark.sandbox(time_offset=5e6)
def test_time_offset():
    assert time.monotonic() > 5e6 and time.clock_gettime(time.CLOCK_BOOTTIME) > 5e6
    assert abs(time.time() - float(os.environ["TIME_OUTSIDE"])) < 1000

@pytest.mark.sandbox(enabled=False)
def test_disabled(): assert os.path.exists(os.environ["FILE_OUTSIDE"])

@pytest.mark.sandbox(hostname="outer", timeout=50)
class TestClosest:
    @pytest.mark.sandbox(hostname="inner")
    def test_closest(self): assert socket.gethostname() == "inner"
    def test_inherited(self): assert socket.gethostname() == "outer"

@pytest.mark.sandbox(5)
def test_positional(): pass
@pytest.mark.sandbox(netwrok="none")
def test_misspelt(): pass
@pytest.mark.sandbox(network="loop")
def test_wrong_network(): pass
@pytest.mark.sandbox(timeout=0)
def test_wrong_timeout(): pass
@pytest.mark.sandbox(tmp="no")
def test_wrong_tmp(): pass
@pytest.mark.sandbox(pids=True)
def test_wrong_pids(): pass
@pytest.mark.sandbox(memory="lots")
def test_wrong_memory(): pass
@pytest.mark.sandbox(enabled=0)
def test_wrong_enabled(): pass
@pytest.mark.sandbox(hostname="a\\nb")
def test_wrong_hostname(): pass
"""

WRONG = {
    "test_positional": "sandbox() takes arguments by name only, got (5,)",
    "test_misspelt": "but not netwrok",
    "test_wrong_network": "sandbox(network=...) must be one of loopback, none, host, got 'loop'",
    "test_wrong_timeout": "sandbox(timeout=...) must be",
    "test_wrong_tmp": "sandbox(tmp=...) must be True or False, not 'no'",
    "test_wrong_pids": "sandbox(pids=...) must be an int, not bool",
    "test_wrong_memory": "sandbox(memory=...)",
    "test_wrong_enabled": "sandbox(enabled=...) must be True or False, not 0",
    "test_wrong_hostname": "sandbox(hostname=...)",
}


def test_mark_each_argument_does_what_it_says(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = tmp_path / "outside"
    outside.touch()
    root = tmp_path / "root"
    root.mkdir()
    monkeypatch.setenv("FILE_OUTSIDE", str(outside))
    monkeypatch.setenv("NET_OUTSIDE", os.readlink("/proc/self/ns/net"))
    monkeypatch.setenv("TIME_OUTSIDE", str(time.time()))
    run = inner_pytest.run(root, test_marks=MARKS)
    outcomes = run.outcomes()
    failures = run.failures()
    assert {name: failures.get(name, "") for name, text in WRONG.items() if text not in failures.get(name, "")} == {}
    assert set(failures) == set(WRONG), run.output
    assert {outcomes[name] for name in WRONG} == {"failed in setup"}
    assert run.output.count("passed") == 1


def test_ini_options_are_the_default(tmp_path: pathlib.Path) -> None:
    lines = [
        "[pytest]",
        "sandbox = true",
        "sandbox_hostname = from-ini",
        "sandbox_tmp = no",
        "sandbox_time_offset = 1e7",
    ]
    (tmp_path / "pytest.ini").write_text("\n".join([*lines, "sandbox_timeout = 1", "sandbox_network = none"]))
    source = f"""
        import os, socket, time
        import pytest
        def test_all():
            assert socket.gethostname() == "from-ini"
            assert time.monotonic() > 1e7
            assert os.stat("/tmp").st_dev == {os.stat("/tmp").st_dev}
            with pytest.raises(OSError): socket.create_connection(("127.0.0.1", 1))
        @pytest.mark.sandbox(hostname="from-mark", timeout=60)
        def test_mark():
            assert socket.gethostname() == "from-mark"
        def test_timeout(): time.sleep(100)
        @pytest.mark.sandbox(enabled=False)
        def test_outside(): assert socket.gethostname() not in ("from-ini", "from-mark")
    """
    run = inner_pytest.run(tmp_path, test_ini=source)
    expected = {"test_all": "passed", "test_mark": "passed", "test_timeout": "failed", "test_outside": "passed"}
    assert run.outcomes() == expected, run.output


def test_ini_option_with_a_wrong_value_says_so(tmp_path: pathlib.Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\nsandbox_pids = many\n")
    run = inner_pytest.run(tmp_path, "--sandbox", test_ini="def test(): pass")
    assert "sandbox(pids=...) must be an int" in run.failures()["test"]


def test_tmp_sandbox_writes_to_tmp_path_and_to_nothing_else(tmp_path: pathlib.Path) -> None:
    source = """
        def test_workspace(tmp_sandbox, tmp_path):
            (tmp_path / "before").write_text("given")
            (tmp_path / "there").mkdir(mode=0o755)
            script = "cat before; pwd; echo 1 > made; mkdir d; echo 2 > d/e; echo > /usr/x; ls /home"
            done = tmp_sandbox.run(["sh", "-c", script], capture_output=True, text=True)
            assert done.stdout == f"given{tmp_path}\\n"
            assert "Read-only" in done.stderr and done.returncode
            assert (tmp_path / "made").read_text() + (tmp_path / "d/e").read_text() == "1\\n2\\n"
    """
    run = inner_pytest.run(tmp_path, test_fixture=source)
    assert run.outcomes()["test_workspace"] == "passed", run.output
    run = inner_pytest.run(tmp_path, "--sandbox", "-k", "workspace")
    assert run.outcomes()["test_workspace"] == "passed", run.output
