"""What `--help` prints: short, grouped, at most 80 columns."""

import os
import re
from typing import Final, TextIO

from sandbox.options import GROUPS, Subcommand

_COLUMN: Final = 30

_TOP: Final = """\
Run commands in Linux sandboxes.

**usage:** sandbox **run** [options] -- COMMAND    run a command in a new sandbox
       sandbox **shell** [options]             the same with a shell and a terminal
       sandbox **plan** [options] -- COMMAND   print the system calls, run nothing
       sandbox **exec** NAME -- COMMAND        one more command in one that runs
       sandbox **list** [--json]               those that run with a --name
       sandbox **stop** NAME | **kill** NAME       end one: asked to, or at once
       sandbox **doctor** [--json]             what works on this host, and why not
       sandbox **seccomp** ACTION FILTER       show, simulate, diff, convert filters
       sandbox **supervise** FILE              run services, and start them again
       sandbox **completion** SHELL            completion for bash, zsh or fish
       sandbox **--version** | **--help**

sandbox run --help lists the options.
"""

USAGE: Final[dict[Subcommand, str]] = {
    "run": """\
Run a command in a new sandbox.

**usage:** sandbox run [options] -- COMMAND [ARGUMENT...]

Without options the command has a read-only /usr, the part of /etc that
programs need, a private /tmp, /dev and /proc, no network but its own loopback,
a clean environment and no privilege. Its input and output are yours.

**Examples**
  sandbox run -- python3 -c 'print(6*7)'
  sandbox run --bind .:/src --cwd /src -- make -j2
  sandbox run --rootfs /srv/alpine --network host -- apk update
  sandbox run --env HOME=/root --file /root/.profile=@profile -- sh -l
""",
    "shell": """\
Work in a new sandbox: run a shell, or a command, on a terminal of its own.

**usage:** sandbox shell [options] [-- COMMAND [ARGUMENT...]]

Without a command it is your $SHELL if the sandbox has it, else bash or sh.
Keys go inside, Ctrl-C and Ctrl-Z too; the size of your terminal is passed on.

**Examples**
  sandbox shell
  sandbox shell --bind .:/src --cwd /src
  sandbox shell --filter-output --rootfs /srv/alpine -- ash
""",
    "plan": """\
Print the system calls that `sandbox run` would make, in order. Nothing runs.

**usage:** sandbox plan [options] -- COMMAND [ARGUMENT...]

**Examples**
  sandbox plan -- true
  sandbox plan --format json --bind /srv:/data -- make | jq .steps[].call
  sandbox plan --format svg --bind /srv:/data -- make > sandbox.svg
""",
    "exec": """\
Run one more command in a sandbox that sandbox run --name started.

**usage:** sandbox exec [options] NAME [options] -- COMMAND [ARGUMENT...]

It sees the files, processes and network of the sandbox, and all layers of that
are applied to it again: filter, Landlock, capabilities, limits, environment.
Its input and output are yours. It ends with you, and with the sandbox.

**Examples**
  sandbox run --name web --network host -- server &
  sandbox exec web -- ps aux
  sandbox exec web --tty --cwd /tmp -- bash
""",
    "list": """\
List your sandboxes that run with a --name.

**usage:** sandbox list [--json | --names]

PID is the process of sandbox run. MEMORY, the most that was in use, is counted
where the sandbox has a limit on memory.
""",
    "stop": """\
Ask the command of a sandbox to end (SIGTERM); after a time kill what is left.

**usage:** sandbox stop NAME [--grace SECONDS]

When it returns, the sandbox has ended, and its name can be taken again.
""",
    "kill": """\
Kill all that runs in a sandbox, at once.

**usage:** sandbox kill NAME
""",
}

DOCTOR: Final = """\
Say what works on this host, what stands in the way of the rest, and what to do
about it. Each thing is tried in a process that is thrown away.

**usage:** sandbox doctor [--json]

  **--json**                      the same for programs

**Exit status**
  0 when all works that `sandbox run` needs, else 1: what only some options need
  may be missing.
"""

COMPLETION: Final = """\
Print what makes a shell complete the words of this command.

**usage:** sandbox completion bash | zsh | fish

**Examples**
  sandbox completion bash > ~/.local/share/bash-completion/completions/sandbox
  sandbox completion zsh > ~/.zfunc/_sandbox      with ~/.zfunc in fpath
  sandbox completion fish > ~/.config/fish/completions/sandbox.fish
"""

SUPERVISE: Final = """\
Run the services of a file: start them in order, watch them, start them again.

**usage:** sandbox supervise [--plain] [--check] FILE.toml

  **--plain**                     lines instead of a live table; so too where
                              standard output is no terminal, or without rich
  **--check**                     only read the file

  [services.web]
  command = ["server", "--port", "8080"]
  sandbox = ["--network", "host", "--bind", "/srv/www"]    # or true, or false
  ready = { tcp = 8080 }                           # or "notify", "fd", "ended"
  restart = "on-failure"                           # or "always", "never"
  after = ["store"]                                # docs/supervise.md has all

SIGTERM and SIGINT stop all in reverse order, a second one kills. SIGHUP reads
the file again: what is new is started, what is gone stopped, what has changed
replaced; the others are reloaded if they say how.

**Exit status**
  0, or 1 when a service has failed for good; 125 when the file is wrong.
"""

END: Final[dict[Subcommand, str]] = {
    "run": """\
**More words after a value**
  --bind SRC:DST:optional,noexec,dev    skip a missing SRC; forbid programs on
                                        it; let device nodes on it work
  --bind SRC:DST:owner=1000             what is written there is that user's;
                                        SRC's owner when left out. Root's only
                                        when said, as owner=0
  --bind SRC::optional                  the same without a DST
  --tmpfs DST:64M,mode=1777,inodes=100,noexec
  --proc=/proc:hidepid,subset=pid       --dev=/dev:shm=64M
  --file DST:0600=TEXT                  text that starts with @ is written @@
  --seccomp none|default|default-nesting|strict|docker|profile.json|raw.bpf
  --landlock read=/usr,/lib --landlock write=/tmp --landlock connect-tcp=443
  --landlock scope=signal --landlock best-effort    all of them are one layer
  A colon or = that belongs to a path is written \\: or \\=.

**Exit status**
  that of the command; 128+N when signal N ended it; 127 when there is no such
  program, 126 when it cannot be executed; 125 when the sandbox could not be
  made; 124 after --timeout or --wall-time. SIGINT, SIGTERM and SIGHUP are
  passed on; after a second one, or 5 seconds, everything inside is ended.
""",
    "shell": """\
**Exit status**
  that of the shell or command; sandbox run --help says more about it, and about
  the options' values. Your terminal gets its settings back whatever happens.
""",
    "plan": """\
sandbox run --help says more about the options' values.
""",
    "exec": """\
**Exit status**
  that of the command, as sandbox run --help says it; 125 when there is no such
  sandbox. SIGINT, SIGTERM and SIGHUP are passed on; after a second one, or 5
  seconds, the command is ended with all in its process group.
""",
    "list": """\
**Exit status**
  0, also when there are none.
""",
    "stop": """\
**Exit status**
  0 when it has ended; 125 when there is no such sandbox.
""",
    "kill": """\
**Exit status**
  0 when it has ended; 125 when there is no such sandbox.
""",
}


def _colours(stream: TextIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def text(subcommand: Subcommand | None, stream: TextIO) -> str:
    """Return the help of a subcommand, or of the whole command, for a stream."""
    if subcommand is None:
        return _marked(_TOP, _colours(stream))
    lines = [USAGE[subcommand]]
    for title, group in GROUPS:
        options = [option for option in group if option.belongs_to(subcommand)]
        if not options:
            continue
        lines.append(f"**{title}**")
        for option in options:
            name = f"{option.short}, {option.name}" if option.short else option.name
            value = option.value if option.value.startswith("[") or not option.value else f" {option.value}"
            space = " " * (_COLUMN - len(name) - len(value) - 2)
            lines.append(f"  **{name}**{value}{space}{option.text}")
        lines.append("")
    lines.append(END[subcommand])
    return _marked("\n".join(lines), _colours(stream))


def doctor(stream: TextIO) -> str:
    """Return the help of `sandbox doctor`, for a stream."""
    return _marked(DOCTOR, _colours(stream))


def supervise(stream: TextIO) -> str:
    """Return the help of `sandbox supervise`, for a stream."""
    return _marked(SUPERVISE, _colours(stream))


def completion(stream: TextIO) -> str:
    """Return the help of `sandbox completion`, for a stream."""
    return _marked(COMPLETION, _colours(stream))


def _marked(text: str, colours: bool) -> str:
    """Make what stands between double asterisks bold, where the stream shows that."""
    return re.sub(r"\*\*(.+?)\*\*", "\033[1m\\1\033[m" if colours else r"\1", text)
