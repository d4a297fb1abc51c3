"""The man page and the completions are installed, have every option, and nobody who reads them complains."""

import os
import subprocess
from importlib.metadata import files

import pytest

from sandbox import completion, options
from sandbox.option_values import OptionError

FILES = {
    path.name: str(path.locate())
    for path in files("sandbox") or ()
    if str(path.parent).endswith(
        ("share/man/man1", "bash-completion/completions", "zsh/site-functions", "fish/vendor_completions.d")
    )
}


def test_generated_files_are_installed() -> None:
    assert FILES.keys() == {"sandbox.1", "sandbox", "_sandbox", "sandbox.fish"}


@pytest.mark.needs_program("mandoc", "groff", "man")
@pytest.mark.parametrize(
    "words",
    [["mandoc", "-Tlint", "-W", "warning"], ["groff", "-man", "-ww", "-z", "-Tutf8"], ["man", "--warnings", "-l"]],
    ids=lambda words: words[0],
)
def test_manual_has_no_mistake(words: list[str]) -> None:
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "MANROFFSEQ": "", "MANWIDTH": "80"}
    done = subprocess.run([*words, FILES["sandbox.1"]], capture_output=True, text=True, env=environment, timeout=60)
    assert (0, "") == (done.returncode, done.stderr)


@pytest.mark.parametrize(
    ("name", "dashes"), [("sandbox.1", "--"), ("sandbox", "--"), ("_sandbox", "--"), ("sandbox.fish", "-l ")]
)
def test_generated_file_names_every_option(name: str, dashes: str) -> None:
    with open(FILES[name]) as stream:
        text = stream.read().replace("\\-", "-")
    every = {
        one.replace("--", dashes, 1) for subcommand in options.SUBCOMMANDS for one in options.options_of(subcommand)
    }
    assert every == {one for one in every if one in text}


@pytest.mark.parametrize(("shell", "name"), [("bash", "sandbox"), ("zsh", "_sandbox"), ("fish", "sandbox.fish")])
def test_completion_prints_what_is_installed(shell: str, name: str) -> None:
    with open(FILES[name]) as stream:
        assert stream.read() == completion.made_for([shell])


@pytest.mark.parametrize("words", [[], ["tcsh"], ["bash", "zsh"]])
def test_completion_of_another_shell_is_refused(words: list[str]) -> None:
    with pytest.raises(OptionError, match="bash, zsh, fish"):
        completion.made_for(words)
