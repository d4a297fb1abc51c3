"""What a terminal may be shown of the output of somebody who is not trusted.

A terminal obeys what it prints: it sets the clipboard (OSC 52) and its title, answers questions as if somebody had
typed (DA, DSR, DECRQSS, OSC 10, ENQ), prints, resizes its window, changes its encoding. `EscapeFilter` lets pass what
draws: text, colours, movements of the cursor, erasing, the alternate screen, mouse and paste modes. What it does not
know is dropped, and what it lets pass is whole: the terminal never sees the beginning of a sequence without its end,
so it is between sequences whenever a new one starts, and there is nothing in its parser to confuse.

`printable` is for a line of a message: no control character at all.
"""

import codecs
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Final, TextIO

# The bulk of what is printed, text and colours, in one match (not a possessive one: those of Python 3.11.2 take what
# does not match); fewer parameters than the bound below. Not in it are
# C0 without BEL to SI (0x07 to 0x0f), DEL, and C1, which terminals obey in UTF-8, too.
_DRAWN: Final = re.compile(r"(?:[^\x00-\x06\x10-\x1f\x7f-\x9f]+|\x1b\[(?:[0-9]{0,4}[;:]){0,16}[0-9]{0,4}m)+")
# A terminal's sequence without its last character; the bounds are what is ever kept of an unfinished one.
_ESCAPE: Final = re.compile(r"\x1b[ -/]{0,2}")
_CONTROL: Final = re.compile(r"\x1b\[[0-?]{0,96}[ -/]{0,2}")
# OSC, DCS, SOS, PM and APC, and the title of screen(1) and tmux(1): all up to their end is dropped.
_STRINGS: Final = frozenset("]PX^_k")
_STRING_END: Final = re.compile(r"[\x07\x18\x1a\x1b\x9c]")

_PARAMETERS: Final = r"(?:[0-9]{0,4}[;:])*[0-9]{0,4}"
_PRIVATE: Final = re.compile(r"\x1b\[\?([0-9;]+)([hl])")
_PLAIN: Final = re.compile(rf"\x1b\[({_PARAMETERS})([ -/]?[@-~])")

# Modes of CSI ? h and l, and what undoes what they leave: the mouse's reports are typed by whoever moves it.
_MODES: Final = {
    "47": False,  # the alternate screen, four times: first, because what follows may belong to a screen
    "1047": False,
    "1049": False,
    "1048": None,  # save the cursor: nothing to undo
    "1": False,  # cursor keys
    "5": False,  # reverse video, as visible bells do it
    "6": False,  # origin
    "7": True,  # wrap
    "12": None,  # a blinking cursor: everybody's own taste
    "25": True,  # a visible cursor
    "1000": False,  # the mouse
    "1002": False,
    "1003": False,
    "1006": False,
    "2004": False,  # pasted text between marks
}
# How many parameters each may have: cursor, erase, insert, delete, scroll, tabs, margins, colours.
_FINALS: Final = dict.fromkeys("@ABCDEFGILMPSTXZ`ade", 1) | dict.fromkeys("Hfr", 2) | dict.fromkeys("su", 0)
# Parameters of one that may have these only. CSI 3 J would erase what is above the screen, and that is not theirs.
_VALUES: Final = {
    "J": ("", "0", "1", "2"),
    "K": ("", "0", "1", "2"),
    "g": ("", "0", "3"),
    " q": ("", "0", "1", "2", "3", "4", "5", "6"),
    "!p": ("",),
    "h": ("4",),
    "l": ("4",),
}
# Those of two and three characters, with what undoes them under which name.
_SIMPLE: Final[dict[str, tuple[tuple[str, str], ...]]] = {
    **dict.fromkeys(("\x1b7", "\x1b8", "\x1bD", "\x1bE", "\x1bM", "\x1bH"), ()),
    "\x1b=": (("keypad", "\x1b>"),),
    "\x1b>": (("keypad", ""),),
    "\x1b(0": (("G0", "\x1b(B"),),
    "\x1b(B": (("G0", ""),),
    "\x1b)0": (("G1", "\x1b)B"),),
    "\x1b)B": (("G1", ""),),
}
_MOST_REPEATED: Final = 3  # digits

_Effects = tuple[tuple[str, str], ...]


@lru_cache(maxsize=1024)
def _judge(sequence: str) -> tuple[str, _Effects]:
    """Return what is let pass of a whole sequence, and what would undo it: (name, sequence or "" for undone)."""
    if sequence in _SIMPLE:
        return sequence, _SIMPLE[sequence]
    private = _PRIVATE.fullmatch(sequence)
    if private is not None:
        return _judge_modes(private[1], private[2] == "h")
    plain = _PLAIN.fullmatch(sequence)
    if plain is None:
        return "", ()
    parameters, final = plain[1], plain[2]
    if final == "m":
        return sequence, (("colours", "" if parameters in {"", "0"} else "\x1b[m"),)
    if final == "b":
        return (sequence if parameters.isdigit() and len(parameters) <= _MOST_REPEATED else ""), ()
    if final in _VALUES:
        if parameters not in _VALUES[final]:
            return "", ()
        if final in {"h", "l"}:
            return sequence, (("insert", "\x1b[4l" if final == "h" else ""),)
        return sequence, ((("style", "\x1b[ q"),) if final == " q" else ())
    most = _FINALS.get(final)
    if most is None or ":" in parameters or parameters.count(";") >= max(1, most) or (parameters and not most):
        return "", ()
    # Without margins the cursor goes home.
    return sequence, ((("margins", "\x1b7\x1b[r\x1b8" if parameters else ""),) if final == "r" else ())


def _judge_modes(parameters: str, on: bool) -> tuple[str, _Effects]:
    modes = [mode for mode in parameters.split(";") if mode in _MODES]
    letter = "h" if on else "l"
    effects = tuple(
        (f"?{mode}", "" if on == usual else f"\x1b[?{mode}{'h' if usual else 'l'}")
        for mode in modes
        if (usual := _MODES[mode]) is not None
    )
    return (f"\x1b[?{';'.join(modes)}{letter}" if modes else ""), effects


class EscapeFilter:
    """Lets pass what draws, and drops what a terminal would answer, remember or do elsewhere.

    However the output is cut into pieces, the same comes out. What is kept between two pieces is less than 200 bytes.

    Args:
        utf8: The terminal takes UTF-8: what is none becomes U+FFFD. False: bytes above 0x9f pass as they are, and those
            below, which such a terminal obeys, become question marks; that is safe on a terminal with UTF-8, too.
    """

    def __init__(self, *, utf8: bool = True) -> None:
        self._encoding = "utf-8" if utf8 else "latin-1"
        self._decoder = codecs.getincrementaldecoder(self._encoding)("replace")
        self._instead = "�" if utf8 else "?"
        self._rest = ""
        self._in_string = False
        self._undo: dict[str, str] = {}

    def feed(self, data: bytes) -> bytes:
        """Return what may be shown of the next piece of output."""
        return self._filter(self._decoder.decode(data))

    def close(self) -> bytes:
        """Return what the last piece still owes, and then what undoes the modes and colours that were left on."""
        last = self._filter(self._decoder.decode(b"", True))
        self._rest = ""
        self._in_string = False
        undo = "".join(self._undo.pop(name) for name in sorted(self._undo, key=_order))
        return last + undo.encode(self._encoding)

    def _filter(self, text: str) -> bytes:
        return "".join(self._parts(self._rest + text)).encode(self._encoding)

    def _parts(self, text: str) -> Iterator[str]:
        at, end = 0, len(text)
        self._rest = ""
        while at < end:
            if self._in_string:
                found = _STRING_END.search(text, at)
                if found is None:
                    return
                self._in_string = False
                # ESC begins the next sequence, most often the ESC \ that is the end of this one.
                at = found.start() if found[0] == "\x1b" else found.end()
                continue
            found = _DRAWN.match(text, at)
            if found is not None:
                at = found.end()
                yield self._drawn(found[0])
            elif text[at] == "\x1b":
                at, shown = self._sequence(text, at)
                yield shown
            else:
                yield self._instead if text[at] >= "\x80" else ""
                at += 1

    def _drawn(self, text: str) -> str:
        if "\x0e" in text or "\x0f" in text:
            shifted = text.rfind("\x0e") > text.rfind("\x0f")
            self._note((("shift", "\x0f" if shifted else ""),))
        last = text.rfind("\x1b")
        if last >= 0:
            self._note(_judge(text[last : text.index("m", last) + 1])[1])
        return text

    def _sequence(self, text: str, at: int) -> tuple[int, str]:
        """Return where the sequence at `at` ends, and what is shown of it; the unfinished last one is kept."""
        begun = _CONTROL.match(text, at) or _ESCAPE.match(text, at)
        assert begun is not None
        end = begun.end()
        if end == len(text):
            self._rest = begun[0]
            return end, ""
        final = text[end]
        if begun[0] == "\x1b" and final in _STRINGS:
            self._in_string = True
            return end + 1, ""
        if not ("@" if begun[0].startswith("\x1b[") else "0") <= final <= "~":
            return end, ""  # no sequence after all, or one that is longer than any we know
        shown, effects = _judge(begun[0] + final)
        self._note(effects)
        return end + 1, shown

    def _note(self, effects: _Effects) -> None:
        for name, undo in effects:
            if undo:
                self._undo[name] = undo
            else:
                self._undo.pop(name, None)


def _order(name: str) -> int:
    """Put the alternate screen first."""
    return 0 if name in {"?47", "?1047", "?1049"} else 1


def printable(text: str) -> str:
    r"""Return a text in which every character that is not printable but for line ends is written as \x1b, \u202e."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one == "\n" else _written(one) for one in text)


def shown(text: str, stream: TextIO) -> str:
    """Return what is written to a stream of a text with names that are not ours: a terminal obeys no part of it."""
    return printable(text) if stream.isatty() else text


def _written(one: str) -> str:
    number = ord(one)
    # A byte that was no text is a surrogate here.
    return f"\\x{number - 0xDC00:02x}" if 0xDC80 <= number <= 0xDCFF else ascii(one)[1:-1]
