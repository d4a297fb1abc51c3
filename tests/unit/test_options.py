"""The options of the command line: each is a method of the builder, and their order is kept."""

import io
import os
import re
from pathlib import Path

import pytest

from sandbox import Filter, Sandbox, help_text, options, suggestions
from sandbox.option_values import OptionError, cut, fields, plain
from sandbox.options import parse


def box_of(*words: str) -> Sandbox:
    draft = parse("run", [*words, "--", "true"])
    assert draft is not None
    return draft.box


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--bind", "/srv"], Sandbox().bind("/srv")),
        (["--bind=/srv"], Sandbox().bind("/srv")),
        (["--bind", "/srv:/data"], Sandbox().bind("/srv", "/data")),
        (["--bind", "/srv::optional"], Sandbox().bind("/srv", optional=True)),
        (
            ["--bind", "/srv:/data:optional,noexec,dev"],
            Sandbox().bind("/srv", "/data", optional=True, exec=False, dev=True),
        ),
        (["--bind", "/srv:/data:owner=0"], Sandbox().bind("/srv", "/data", owner=0)),
        (["--bind-readonly", "/srv::owner=1000"], Sandbox().bind_readonly("/srv", owner=1000)),
        (["--id-ranges"], Sandbox().id_ranges()),
        (["--id-ranges=4096"], Sandbox().id_ranges(4096)),
        (["--bind", r"/a\:b:/c\:d"], Sandbox().bind("/a:b", "/c:d")),
        (["--bind", r"/a\\:/c\d"], Sandbox().bind("/a\\", "/c\\d")),
        (["--bind-readonly", "/srv:/data"], Sandbox().bind_readonly("/srv", "/data")),
        (["--tmpfs", "/x"], Sandbox().tmpfs("/x")),
        (["--tmpfs", "/x:64M"], Sandbox().tmpfs("/x", size="64M")),
        (
            ["--tmpfs", "/x:64M,mode=1777,inodes=10,noexec"],
            Sandbox().tmpfs("/x", size="64M", mode=0o1777, inodes=10, exec=False),
        ),
        (["--tmpfs", "/x:mode=700"], Sandbox().tmpfs("/x", mode=0o700)),
        (["--tmpfs", r"/x\:1"], Sandbox().tmpfs("/x:1")),
        (["--proc"], Sandbox().proc()),
        (["--proc=/p:hidepid,subset=pid"], Sandbox().proc("/p", hidepid=True, subset="pid")),
        (["--dev"], Sandbox().dev()),
        (["--dev=/d:shm=1M"], Sandbox().dev("/d", shm="1M")),
        (["--file", "/f=text"], Sandbox().file("/f", "text")),
        (["--file", "/f="], Sandbox().file("/f", "")),
        (["--file", "/f:0600=a=b:c"], Sandbox().file("/f", "a=b:c", mode=0o600)),
        (["--file", "/f=@@home"], Sandbox().file("/f", "@home")),
        (["--file", r"/f\=\:=x\y"], Sandbox().file("/f=:", r"x\y")),
        (["--file", "/f=\udcff"], Sandbox().file("/f", b"\xff")),
        (["--dir", "/d"], Sandbox().dir("/d")),
        (["--dir", "/d:700"], Sandbox().dir("/d", mode=0o700)),
        (["--symlink", "/f:/l"], Sandbox().symlink("/f", "/l")),
        (["--mask", "/usr/share"], Sandbox().mask("/usr/share")),
        (["--remount-readonly", "/tmp"], Sandbox().remount_readonly("/tmp")),
        (["--rootfs", "/srv"], Sandbox().rootfs("/srv")),
        (["--rootfs", "/srv:rw"], Sandbox().rootfs("/srv", readonly=False)),
        (["--empty", "--proc"], Sandbox.empty().proc()),
        (["--hostname", "h"], Sandbox().hostname("h")),
        (["--domainname", "d"], Sandbox().domainname("d")),
        (["--seccomp", "none"], Sandbox().seccomp(None)),
        (["--seccomp", "docker"], Sandbox().seccomp(Filter.docker())),
        (["--nesting"], Sandbox().nesting()),
        (["--observe"], Sandbox().observe()),
        (
            ["--landlock", "read=/usr,/lib", "--landlock", "read=/etc", "--landlock", "connect-tcp=80,443"],
            Sandbox().landlock(read=["/usr", "/lib", "/etc"], connect_tcp=[80, 443]),
        ),
        (
            ["--landlock", "scope=signal", "--landlock", "best-effort", "--landlock", "write="],
            Sandbox().landlock(scope=["signal"], write=[], best_effort=True),
        ),
        (["--cap", "net_admin,chown", "--cap", "kill"], Sandbox().capabilities(["NET_ADMIN", "CHOWN", "KILL"])),
        (["--ambient-cap", "net_raw"], Sandbox().capabilities(ambient=["NET_RAW"])),
        (["--swap", "0", "--memory", "64M"], Sandbox().limit(memory="64M", swap=0)),
        (["--pids", "20", "--cpus", "1.5"], Sandbox().limit(pids=20, cpus=1.5)),
        (["--cpuset", "0,2-3"], Sandbox().limit(cpuset=[0, 2, 3])),
        (
            ["--io", "read-ops=10", "--io", "write:/dev/a=b=1M"],
            Sandbox().limit(io={"read_ops": 10, "write:/dev/a=b": "1M"}),
        ),
        (["--wall-time", "1.5", "--cpu-time", "2"], Sandbox().limit(wall_time=1.5, cpu_time=2)),
        (["--best-effort", "--memory", "1G"], Sandbox().limit(memory="1G", best_effort=True)),
        (["--open-files", "64", "--file-size", "1M"], Sandbox().limit(open_files=64, file_size="1M")),
        (["--stack", "1M", "--core", "1K"], Sandbox().limit(stack="1M", core="1K")),
        (["--user", "5"], Sandbox().user(5)),
        (["--user", "5:6"], Sandbox().user(5, 6)),
        (["--user", "0", "--host-root"], Sandbox().user(0, host_root=True)),
        (["--host-root", "--user", "0", "--strict-groups"], Sandbox().user(0, host_root=True, groups="strict")),
        (["--share", "net,uts"], Sandbox().share("net", "uts")),
        (["--share", "net", "--unshare", "net"], Sandbox().share("net").unshare("net")),
        (["--network", "none"], Sandbox().network("none")),
        (["--env", "A=b=c"], Sandbox().env(A="b=c")),
        (["--env", "A="], Sandbox().env(A="")),
        (["--unset-env", "LANG"], Sandbox().env(LANG=None)),
        (["--python"], Sandbox().python()),
        (["--time-offset", "monotonic=5,boottime=-0.5"], Sandbox().time_offset(monotonic=5, boottime=-0.5)),
        (["--same-session"], Sandbox().new_session(False)),
        (["--no-init"], Sandbox().init(False)),
        (["--cwd", "/tmp"], Sandbox().cwd("/tmp")),
        (["--umask", "077"], Sandbox().umask(0o077)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_parse_option_is_builder_method(words: list[str], expected: Sandbox) -> None:
    assert expected == box_of(*words)


def test_parse_environment_of_the_caller_is_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONE", "1")
    monkeypatch.setenv("TWO", "2")
    assert Sandbox().env(ONE="1") == box_of("--env", "ONE")
    assert Sandbox().env(ONE="1", TWO="2") == box_of("--inherit-env=ONE,TWO")
    assert Sandbox().inherit_env() == box_of("--inherit-env")


def test_parse_every_option_is_tested_here() -> None:
    marks = test_parse_option_is_builder_method.pytestmark  # type: ignore[attr-defined]
    tested = {word.partition("=")[0] for case in marks[0].args[1] for word in case[0] if word.startswith("--")}
    elsewhere = {"--file-fd", "--inherit-env", "--timeout", "--format", "--tty", "--filter-output", "--name"}
    assert options.options_of("run").keys() | options.options_of("plan").keys() == tested | elsewhere


def test_parse_several_options_keep_their_order() -> None:
    assert Sandbox().tmpfs("/x").bind("/srv", "/x/y").mask("/x/y/z") == box_of(
        "--tmpfs", "/x", "--bind", "/srv:/x/y", "--mask", "/x/y/z"
    )
    assert box_of("--tmpfs", "/x", "--mask", "/y") != box_of("--mask", "/y", "--tmpfs", "/x")


def test_parse_relative_source_becomes_absolute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/usr")
    assert Sandbox().bind("/usr/lib", "/x") == box_of("--bind", "lib:/x")


def test_parse_file_of_the_host_is_read(tmp_path: object) -> None:
    with open(f"{tmp_path}/a:b", "wb") as stream:
        stream.write(b"\x00\xff")
    assert Sandbox().file("/f", b"\x00\xff") == box_of("--file", f"/f=@{tmp_path}/a:b")


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["true"], ["true"]),
        (["--", "--bind"], ["--bind"]),
        (["--umask", "0", "ls", "--bind", "-l"], ["ls", "--bind", "-l"]),
        (["--", "sh", "--", "-c"], ["sh", "--", "-c"]),
    ],
)
def test_parse_command_begins_after_dashes_or_at_the_first_word(words: list[str], command: list[str]) -> None:
    draft = parse("run", words)
    assert draft is not None
    assert command == draft.command


def test_parse_timeout_is_seconds() -> None:
    draft = parse("run", ["--timeout", "1.5", "true"])
    assert draft is not None
    assert draft.timeout == 1.5


def test_parse_format_belongs_to_plan_only() -> None:
    draft = parse("plan", ["--format", "json", "true"])
    assert draft is not None
    assert draft.format == "json"
    with pytest.raises(OptionError, match="no option --format"):
        parse("run", ["--format", "json", "true"])
    with pytest.raises(OptionError, match="no option --timeout"):
        parse("plan", ["--timeout", "1", "true"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "what shall run"),
        (["--umask", "0"], "what shall run"),
        (["--bind", "--", "ls"], r"--bind takes SRC\[:DST\], which is missing"),
        (["--bind-ro", "/x", "true"], r"did you mean --bind or --bind-readonly\?"),
        (["--net", "host", "true"], r"did you mean --network\?"),
        (["--hel"], r"did you mean --help\?"),
        (["--ro-bind", "/x", "/x", "true"], "here it is --bind-readonly SRC:DST"),
        (["-it", "true"], "here it is --tty, or sandbox shell"),
        (["--rm", "true"], "it is not needed: nothing is ever left"),
        (["--frobnicate", "true"], "sandbox run --help lists them"),
        (["--bidn", "/x", "true"], "no option --bidn\n  hint: did you mean --bind"),
        (["--readonly-bind", "/x", "true"], "--bind-readonly"),
        (["-x", "true"], "no option -x"),
        (["--bind"], r"--bind takes SRC\[:DST\], which is missing"),
        (["--empty=1", "true"], "--empty takes no value"),
        (["--bind", "a:b", "true"], r"(?s)--bind a:b: target must be an absolute path.*written \\:"),
        (["--bind", "/a:/b:/c", "true"], "'/c' is none of optional, noexec, dev, owner=..."),
        (["--bind", "/a:/b:owner=root", "true"], "owner must be a number, got 'root'"),
        (["--bind", "/a:/b:dev:/c", "true"], "4 parts where at most 3"),
        (["--bind", "", "true"], "source must be a path"),
        (["--tmpfs", "/x:64Q", "true"], "size must be bytes"),
        (["--tmpfs", "/x:64M,", "true"], "comma"),
        (["--tmpfs", "/x:mode=9", "true"], "mode must be an octal number, got '9'"),
        (["--tmpfs", "/x:fast", "true"], r"'fast' is none of SIZE \(as 64M\), mode=..., inodes=..., noexec"),
        (["--proc=/p:subset=all", "true"], "subset must be"),
        (["--file", "/f", "true"], "DST=TEXT or DST=@FILE"),
        (["--file", "f=x", "true"], "absolute path"),
        (["--file", "/f=@/dev/zero", "true"], "at most 16 MiB"),
        (["--dir", "/d:8", "true"], "octal"),
        (["--dir", "/d:7777", "true"], "no set-id bits"),
        (["--symlink", "/x", "true"], "TO:DST"),
        (["--mask", "usr", "true"], "absolute path"),
        (["--bind", "/srv", "--rootfs", "/x", "true"], "must come before"),
        (["--proc", "--empty", "true"], "must come first"),
        (["--user", "me", "true"], "UID must be a number, got 'me'"),
        (["--user", "1:", "true"], "GID must be a number"),
        (["--user", "root", "true"], "--user root: takes numbers; root is 0"),
        (["--user", str(1 << 32), "true"], "--user 4294967296: uid must be between"),
        (["--cap", "sys_admi", "true"], "--cap sys_admi: .* did you mean CAP_SYS_ADMIN"),
        (["--landlock", "read", "true"], "bind-tcp"),
        (["--seccomp", "docke", "true"], "(?s)--seccomp docke: No such file.* strict, docker, or a file"),
        (["--file", "/f=@/no/such/file", "true"], "--file /f=@/no/such/file: /no/such/file: No such file"),
        (["--hostname", "", "true"], "--hostname '': name must have"),
        (["--user", "-1", "true"], "uid must be between"),
        (["--hostname", "x" * 65, "true"], "64 bytes"),
        (["--share", "network", "true"], 'namespaces must be of "user", "pid", "net"'),
        (["--network", "all", "true"], 'must be "none"'),
        (["--env", "=x", "true"], "a name must not be empty"),
        (["--cwd", "tmp", "true"], "absolute path"),
        (["--umask", "8", "true"], "octal"),
        (["--umask", "1000", "true"], "between 0 and 0o777"),
        (["--memory", "64Q", "true"], "--memory 64Q: memory must be bytes"),
        (["--swap", "1M", "true"], "swap is what memory"),
        (["--pids", "many", "true"], "--pids many: .*a number"),
        (["--cpus", "0", "true"], "--cpus 0: cpus must be between"),
        (["--cpuset", "3-1", "true"], "0,2-3"),
        (["--cpuset", "a", "true"], "a processor must be a number"),
        (["--io", "read", "true"], "WORD=RATE"),
        (["--io", "reads=1", "true"], "--io reads=1: io has the names"),
        (["--timeout", "soon", "true"], "takes seconds"),
        (["--timeout", "0", "true"], "more than 0"),
        (["--timeout", "nan", "true"], "takes seconds"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_parse_wrong_value_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse("run", words)


def test_parse_in_a_directory_that_was_removed_says_so(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    before = os.getcwd()
    os.chdir(gone)
    try:
        gone.rmdir()
        with pytest.raises(OptionError, match=r"--bind \.: the current directory has been removed"):
            parse("run", ["--bind", ".", "true"])
    finally:
        os.chdir(before)


def test_options_of_others_lead_to_ones_that_there_are() -> None:
    known = options.options_of("run")
    for name, answer in suggestions._ELSEWHERE.items():
        assert name not in known
        assert set(re.findall(r"--[a-z-]+", answer)) <= known.keys(), name


@pytest.mark.parametrize("word", ["-h", "--help"])
def test_parse_help_is_none(word: str) -> None:
    assert parse("run", ["--proc", word]) is None


def test_cut_takes_the_first_separator_without_a_backslash() -> None:
    assert (r"a\:b", r"c:d\:e") == cut(r"a\:b:c:d\:e", ":")
    assert ("a\\\\", "b") == cut("a\\\\:b", ":")
    assert ("a", None) == cut("a", ":")


def test_plain_takes_away_only_the_backslashes_that_mean_something() -> None:
    assert "a:b=c\\d\\e\\" == plain("a\\:b\\=c\\\\d\\e\\")


def test_fields_fills_up_with_empty_parts() -> None:
    assert ["a", "b", ""] == fields("a:b", 3)


# ── help ──


@pytest.mark.parametrize("subcommand", [None, *options.SUBCOMMANDS])
def test_help_fits_eighty_columns(subcommand: options.Subcommand | None) -> None:
    text = help_text.text(subcommand, io.StringIO())
    assert "\033" not in text
    assert "**" not in text
    assert 80 >= max(map(len, text.splitlines()))


@pytest.mark.parametrize("subcommand", options.SUBCOMMANDS)
def test_help_lists_each_option_of_the_subcommand(subcommand: options.Subcommand) -> None:
    text = help_text.text(subcommand, io.StringIO())
    listed = {
        word.partition("[")[0] for line in text.splitlines() if line.startswith("  -") for word in line.split()[:2]
    }
    assert options.options_of(subcommand).keys() <= {name.partition("=")[0] for name in listed}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_help_is_coloured_only_on_a_terminal_that_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert "\033[1m--bind\033[m" in help_text.text("run", Terminal())
    monkeypatch.setenv("TERM", "dumb")
    assert "\033" not in help_text.text("run", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\033" not in help_text.text("run", Terminal())


def test_parse_shell_needs_no_command_and_has_a_terminal() -> None:
    draft = parse("shell", ["--timeout", "5"])
    assert draft is not None
    assert ([], True, False, 5.0) == (draft.command, draft.tty, draft.filter_output, draft.timeout)


@pytest.mark.parametrize(
    ("words", "tty", "filtered"),
    [([], False, False), (["-t"], True, False), (["--tty"], True, False), (["--filter-output"], True, True)],
)
def test_parse_terminal_of_a_run(words: list[str], tty: bool, filtered: bool) -> None:
    draft = parse("run", [*words, "true"])
    assert draft is not None
    assert (tty, filtered) == (draft.tty, draft.filter_output)


def test_parse_plan_has_no_terminal() -> None:
    with pytest.raises(OptionError, match="no option -t"):
        parse("plan", ["-t", "true"])
