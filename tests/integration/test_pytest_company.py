"""The pytest plugin beside options and other plugins of pytest."""

import json
import os
import pathlib
import re
import signal
import subprocess
import time
import xml.etree.ElementTree as ET

import harness
import inner_pytest
import pytest

pytestmark = pytest.mark.needs_userns

SHARED = """
import os, socket
import pytest

@pytest.mark.parametrize("number", range(8))
@pytest.mark.xdist_group("one")
def test_same_everywhere(number, tmp_path):
    server = socket.create_server(("127.0.0.1", 4444))
    socket.sethostname("same")
    with open("/tmp/same", "x") as stream: stream.write(str(number))
    (tmp_path / "own").touch()
    assert socket.gethostname() == "same"
"""


@pytest.mark.parametrize("arguments", [[], ["-n", "2"], ["-n", "2", "--dist", "loadgroup"]], ids=" ".join)
def test_workers_bind_and_write_the_same(tmp_path: pathlib.Path, arguments: list[str]) -> None:
    source = SHARED.replace("socket.sethostname(", "os.geteuid() or socket.sethostname(").replace(
        'assert socket.gethostname() == "same"', 'assert os.geteuid() or socket.gethostname() == "same"'
    )
    name = os.uname().nodename
    run = inner_pytest.run(tmp_path, "--sandbox", *arguments, test_shared=source)
    assert sorted(run.outcomes().values()) == ["passed"] * 8, run.output
    assert os.uname().nodename == name


def test_coverage_lines_that_ran_only_inside_are_covered(tmp_path: pathlib.Path) -> None:
    measured = """
    def inside(value):
        if value:
            return "reached only by an isolated test"
        return "reached by none"
    def outside(): return 1
    """
    source = """
    import measured, pytest
    @pytest.mark.sandbox
    def test_inside(): assert measured.inside(1)
    def test_outside(): assert measured.outside()
    """
    for arguments in ([], ["-n", "2"]):
        run = inner_pytest.run(
            tmp_path, "--cov=measured", "--cov-report=json", *arguments, measured=measured, test_it=source
        )
        assert set(run.outcomes().values()) == {"passed"}, run.output
        found = json.loads((tmp_path / "coverage.json").read_text())["files"]["measured.py"]
        assert found["missing_lines"] == [5], (arguments, run.output)
        assert not list(tmp_path.glob(".coverage.*"))


def test_time_limit_of_pytest_timeout_ends_everything_inside(tmp_path: pathlib.Path) -> None:
    source = """
    import os, time, pytest
    def hang():
        os.fork()
        time.sleep(1000)
    @pytest.mark.timeout(1)
    def test_whole(): hang()
    @pytest.mark.timeout(1, func_only=True)
    def test_function(): hang()
    def test_after(): pass
    """
    run = inner_pytest.run(tmp_path, "--sandbox", test_time=source)
    assert run.outcomes() == {"test_whole": "failed", "test_function": "failed", "test_after": "passed"}, run.output
    assert all("Timeout" in text for text in run.failures().values()), run.failures()


def test_asyncio_anyio_and_hypothesis_work_inside(tmp_path: pathlib.Path) -> None:
    source = """
    import asyncio
    import anyio, hypothesis, pytest, pytest_asyncio
    from hypothesis import strategies

    @pytest_asyncio.fixture
    async def server():
        async def serve(reader, writer):
            writer.write(await reader.readline())
            writer.close()
        async with await asyncio.start_server(serve, "127.0.0.1", 4545) as made:
            yield made

    @pytest.mark.asyncio
    async def test_asyncio(server):
        reader, writer = await asyncio.open_connection("127.0.0.1", 4545)
        writer.write(b"line\\n")
        assert await reader.read() == b"line\\n"
        writer.close()

    @pytest.mark.asyncio
    async def test_asyncio_fails(): assert await asyncio.sleep(0, 1) == 2

    @pytest.fixture
    def anyio_backend(): return "asyncio"

    @pytest.mark.anyio
    async def test_anyio(anyio_backend):
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep, 0)
        process = await anyio.run_process(["echo", "x"])
        assert process.stdout == b"x\\n"

    @hypothesis.given(strategies.integers())
    def test_hypothesis(number): assert number == number

    @hypothesis.given(strategies.integers())
    def test_hypothesis_finds(number): assert number < 100
    """
    run = inner_pytest.run(tmp_path, "--sandbox", test_async=source)
    failures = run.failures()
    assert set(failures) == {"test_asyncio_fails", "test_hypothesis_finds"}, run.output
    assert "number=100" in failures["test_hypothesis_finds"]


def test_junit_and_first_failure(tmp_path: pathlib.Path) -> None:
    source = """
    import os
    class Odd:
        def __str__(self): return "odd"
    class Bad:
        def __str__(self): raise ValueError
    def test_good(record_property): record_property("kind", Odd()); record_property("keys", {(1, 2): Odd()})
    def test_bad_text(record_property): record_property("bad", Bad())
    def test_killed(): os.abort()
    def test_never(): raise SystemError("reached")
    """
    run = inner_pytest.run(tmp_path, "--sandbox", "-x", "--junitxml=out.xml", test_it=source)
    assert run.outcomes() == {"test_good": "passed", "test_bad_text": "passed", "test_killed": "failed"}, run.output
    cases = {case.get("name"): case for case in ET.parse(tmp_path / "out.xml").iter("testcase")}
    assert next(one.attrib for one in cases["test_good"].iter("property")) == {"name": "kind", "value": "odd"}
    assert "SIGABRT" in ET.tostring(cases["test_killed"], "unicode")
    run = inner_pytest.run(tmp_path, "--sandbox", "--maxfail=2")
    assert len(run.failures()) == 2


def test_last_failed_runs_what_was_killed(tmp_path: pathlib.Path) -> None:
    inner_pytest.write(tmp_path, test_it="import os\ndef test_one(): pass\ndef test_two(): os.abort()")
    words = [word for word in inner_pytest.command("--sandbox") if word != "no:cacheprovider"]
    words.remove("-p")
    for arguments, count in ([], "1 failed, 1 passed"), (["--lf"], "= 1 failed in"):
        done = subprocess.run(
            [*words, *arguments], cwd=tmp_path, env=inner_pytest.environment(tmp_path), capture_output=True, text=True
        )
        assert count in done.stdout, done.stdout


SETUP = """
import pytest
@pytest.fixture(scope="session")
def wide(): print("wide is made"); yield; print("wide is over")
@pytest.fixture
def narrow(wide): print("narrow is made"); yield; print("narrow is over")
def test_it(narrow): print("called"); raise AssertionError("called")
"""


def test_setup_options_show_what_they_show_without(tmp_path: pathlib.Path) -> None:
    for option in ("--setup-only", "--setup-show", "--setup-plan"):
        runs = [inner_pytest.run(tmp_path, *words, option, "-s", test_it=SETUP) for words in ([], ["--sandbox"])]
        # But for how long it took, and where the letter of the outcome stands: behind what happens inside.
        lines = [
            [re.sub(r"in [0-9.]+s|(?<! )F|F(?! )", "", line).strip(" =") for line in run.output.splitlines()]
            for run in runs
        ]
        shown = [list(filter(None, one)) for one in lines]
        assert shown[0] == shown[1]
        assert ("called" in runs[1].output) == (option == "--setup-show")
        assert any("SETUP    F narrow" in line for line in shown[1]), runs[1].output


def test_live_output_is_written_once(tmp_path: pathlib.Path) -> None:
    source = """
    import logging, os
    def test_it():
        print("printed")
        logging.warning("logged")
    """
    run = inner_pytest.run(tmp_path, "--sandbox", "-s", "--log-cli-level=INFO", test_it=source)
    assert run.output.count("printed") == run.output.count("logged") == 1, run.output


@pytest.mark.parametrize("option", ["--pdb", "--trace", "--pdb --pdbcls=pdb:Pdb"])
def test_debugger_options_are_refused_before_the_first_test(tmp_path: pathlib.Path, option: str) -> None:
    source = "import pytest\ndef test_plain(): pass\n@pytest.mark.sandbox\ndef test_it(): pass"
    run = inner_pytest.run(tmp_path, *option.split(), test_it=source)
    assert f"ERROR: {option.split()[0]} cannot work in test_it.py::test_it" in run.output
    assert (run.status, run.reports) == (pytest.ExitCode.USAGE_ERROR, [])
    if option == "--pdb":
        run = inner_pytest.run(tmp_path, "--pdb", "-k", "plain")
        assert run.outcomes() == {"test_plain": "passed"}, run.output


@pytest.mark.parametrize("arguments", [[], ["-s"]], ids=["captured", "not"])
def test_breakpoints_are_failures_that_say_why(tmp_path: pathlib.Path, arguments: list[str]) -> None:
    source = """
    import pdb, pytest
    def test_breakpoint(): breakpoint()
    def test_pdb(): pdb.set_trace()
    def test_pytest(): pytest.set_trace()
    """
    run = inner_pytest.run(tmp_path, "--sandbox", *arguments, test_it=source)
    failures = run.failures()
    assert len(failures) == 3, run.output
    assert {text.partition(":")[0] for text in failures.values()} == {"a debugger cannot work in this test"}


def test_exit_and_interrupt_end_the_session(tmp_path: pathlib.Path) -> None:
    source = """
    import pytest
    @pytest.fixture(scope="session", autouse=True)
    def wide():
        yield
        print("\\nwide is over")
    def test_exit(): pytest.exit("enough", returncode=9)
    def test_interrupt(): raise KeyboardInterrupt
    def test_never(): raise AssertionError("reached")
    """
    run = inner_pytest.run(tmp_path, "--sandbox", "-s", test_it=source)
    assert (run.status, run.reports[1:]) == (9, [])
    assert "Exit: enough" in run.output
    assert "wide is over" in run.output
    run = inner_pytest.run(tmp_path, "--sandbox", "-s", "-k", "not exit")
    assert run.status == pytest.ExitCode.INTERRUPTED
    assert "wide is over" in run.output
    assert "reached" not in run.output


FORGED = """
import os, gc, json
import pytest
from sandbox.pytest_mail import Mailbox

def mailbox():
    gc.unfreeze()
    return next(one for one in gc.get_objects() if isinstance(one, Mailbox))

GOOD = dict(nodeid="", when="call", outcome="passed", duration=0, start=0, stop=0, sections=[], user_properties=[],
            keywords={}, location=["x", 1, "y"], longrepr=None) | {"$report_type": "TestReport"}

def forge(**changes):
    name = os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0]
    mailbox().send(report=GOOD | {"nodeid": name} | changes)

WRONG = [
    {"nodeid": "test_it.py::test_victim", "outcome": "failed", "longrepr": "forged"},
    {"outcome": "great"}, {"when": "collect"}, {"when": ["call"]}, {"outcome": {}},
    {"duration": "long"}, {"start": None}, {"sections": [["a"]]}, {"sections": [["a", 5]]}, {"sections": {"a": 1}},
    {"user_properties": 5}, {"user_properties": [[{}, 1]]},
    {"outcome": "failed", "longrepr": {"reprcrash": None}}, {"outcome": "failed", "longrepr": 7},
    {"outcome": "failed", "longrepr": {"reprcrash": {"path": 1}, "reprtraceback": []}},
    {"outcome": "skipped", "longrepr": "text"}, {"outcome": "skipped", "longrepr": [1, 2, 3]},
    {"outcome": "skipped", "longrepr": ["a"]}, {"outcome": "skipped", "wasxfail": 5}, {"outcome": "failed"},
    {"$report_type": "CollectReport"}, {"$report_type": "Nothing"}, {"$report_type": []},
    {"_report_type": "SubTestReport"}, {"_report_type": "SubTestReport", "_subtest.context": 5},
    {"toterminal": "text", "passed": 1, "get_sections": None, "outcome": "great"},
]

@pytest.mark.parametrize("wrong", WRONG, ids=range(len(WRONG)))
def test_forged(wrong):
    forge(**wrong)
    os._exit(0)

def test_methods_hidden():
    forge(toterminal="text", longreprtext=5, head_line=5, count_towards_summary=[], keywords=5, location=5)
    os._exit(0)

def raw(data):
    box = mailbox()
    box._memory[8:8 + len(data)] = data
    box._memory[:8] = len(data).to_bytes(8, "little")
    os._exit(0)

def test_no_json(): raw(bytes(range(256)) * 4096)
def test_deep(): raw(b"[" * 1000000)
def test_other_messages():
    raw(b"\\n".join(json.dumps(one).encode() for one in [5, None, [], {}, {"report": 5}, {"warning": 5},
        {"warning": [1, 2, 3, 4, 5]}, {"warning": ["a", "os", "system", "f", 1]}, {"exit": 5}, {"broken": []},
        {"done": 1}, {"interrupted": 1}, {"report": GOOD}, {"warning": ["a", "nowhere", "x.y", "f", 1]}]))
def test_length(): mailbox()._memory[:8] = b"\\xff" * 8; os._exit(0)
def test_fills():
    box = mailbox()
    while not box.overflowed: box.send(text="x" * 1000000)
def test_done_only(): mailbox().send(done=True, failed_subtests="x"); os._exit(0)
def test_victim(): pass
"""


def test_forged_reports_are_not_believed(tmp_path: pathlib.Path) -> None:
    """Positive control: a report in the right form is taken, for a test may say of itself what it likes."""
    control = FORGED + "\ndef test_control(): forge(when='teardown'); forge(); mailbox().send(done=True); os._exit(0)\n"
    run = inner_pytest.run(tmp_path, "--sandbox", "-rA", "--junitxml=out.xml", test_it=control)
    outcomes = run.outcomes()
    assert outcomes.pop("test_control") == outcomes.pop("test_victim") == "passed", run.output
    # Its report of the call is in order, and it went after that.
    assert outcomes.pop("test_methods_hidden") == "failed in teardown"
    assert set(outcomes.values()) == {"failed"}, outcomes
    assert len(outcomes) == 26 + 6
    assert "INTERNALERROR" not in run.output
    assert not [one for one in run.reports if "forged" in one["text"]]


def _descendants(text: str) -> list[int]:
    """Return the pids of all processes whose environment has a text."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/environ", "rb") as stream:
                    if text.encode() in stream.read():
                        found.append(int(name))
            except OSError:
                continue
    return found


BUSY = """
import os, subprocess, time
def test_it(tmp_path):
    subprocess.Popen(["sleep", "1000"], start_new_session=True)
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            open("ready", "w").close()
            time.sleep(1000)
        os._exit(0)
    time.sleep(1000)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill", "interrupt"])
def test_signal_to_pytest_leaves_no_process(tmp_path: pathlib.Path, number: int) -> None:
    inner_pytest.write(tmp_path, test_it=BUSY)
    environment = inner_pytest.environment(tmp_path)
    secret = f"inner-{os.getpid()}-{number}-{os.urandom(4).hex()}"
    process = subprocess.Popen(
        inner_pytest.command("--sandbox"),
        cwd=tmp_path,
        env={**environment, "SECRET": secret},
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "ready").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    assert len(_descendants(secret)) >= 4  # pytest, PID 1, the test, and what it has started
    process.send_signal(number)
    assert process.wait(30) == (-signal.SIGKILL if number == signal.SIGKILL else pytest.ExitCode.INTERRUPTED)
    deadline = time.monotonic() + 10
    while _descendants(secret):
        assert time.monotonic() < deadline, _descendants(secret)
        time.sleep(0.01)
    for orphan in harness.children():  # PID 1 came to us, as it would to the machine's
        os.waitpid(orphan, 0)
