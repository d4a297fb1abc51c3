"""The filter of escape sequences, judged by a terminal that obeys everything."""

import io
import re
from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings, strategies as st

from sandbox.escapes import EscapeFilter, printable, shown


def filtered(*pieces: bytes, utf8: bool = True) -> bytes:
    one = EscapeFilter(utf8=utf8)
    return b"".join(map(one.feed, pieces))


class Terminal:
    """Parses as the manual of the VT500 says, and takes C1 for what it is; notes what it was told to do.

    In a string only its own end, CAN, SUB and ESC count; a control character inside of a sequence is obeyed at once.
    """

    def __init__(self, *, utf8: bool) -> None:
        self.utf8 = utf8
        self.told: list[str] = []
        self.state = "ground"
        self.collected = ""

    def feed(self, data: bytes) -> None:
        for one in data.decode("utf-8" if self.utf8 else "latin-1"):
            self._take(one)

    def _take(self, one: str) -> None:
        code = ord(one)
        if code in {0x18, 0x1A}:
            self._tell("cancel")
            self.state = "ground"
        elif 0x80 <= code <= 0x9F:
            self._tell(f"C1 {code:02x}")
            self._escape(chr(code - 0x40))
        elif one == "\x1b":
            self.state, self.collected = "escape", ""
        elif self.state == "string":
            return
        elif code < 0x20 or code == 0x7F:
            self._tell(f"C0 {code:02x}")
        elif self.state == "escape":
            self._escape(one)
        elif self.state == "control":
            self.collected += one
            if "@" <= one <= "~":
                self._tell("CSI " + self.collected)
                self.state = "ground"

    def _escape(self, one: str) -> None:
        if not self.collected and one == "[":
            self.state = "control"
        elif not self.collected and one in "]PX^_k":
            self._tell(f"string {one}")
            self.state = "string"
        elif " " <= one <= "/":
            self.collected += one
            self.state = "escape"
        else:
            self._tell("ESC " + self.collected + one)
            self.state = "ground"

    def _tell(self, what: str) -> None:
        self.told.append(what)


HARMLESS = re.compile(
    r"C0 0[7-9a-f]|ESC (?:[78DEMH=>]|[()][0B])"
    r"|CSI [0-9:;]*m|CSI \d*[@ABCDEFGILMPSTXZ`ade]|CSI \d*;?\d*[Hfr]|CSI [su]|CSI \d{1,3}b"
    r"|CSI [012]?[JK]|CSI [03]?g|CSI [0-6]? q|CSI !p|CSI 4[hl]"
    r"|CSI \?(?:(?:47|104[789]|1|5|6|7|12|25|100[0236]|2004)[;hl])+"
)

pieces = st.lists(
    st.one_of(
        st.binary(max_size=8),
        st.text(max_size=8).map(lambda text: text.encode("utf-8", "surrogateescape" if text.isascii() else "ignore")),
        st.sampled_from(
            [b"\x1b", b"\x1b[", b"\x1b]52;c;", b"\x9b", b"\xc2\x9b", b"\x1b\\", b"\x07", b"\x1bP", b"\x9d"]
        ),
        st.sampled_from(
            [b"\x1b[?", b"1049", b"25", b";", b"h", b"l", b"m", b"c", b"t", b"n", b" ", b"!", b"p", b"\x18"]
        ),
        st.from_regex(rb"\x1b\[[<=>?]?[0-9;:]{0,10}[ -/]?[@-~]", fullmatch=True),
        st.from_regex(rb"\x1b[ -/]?[0-~]", fullmatch=True),
    ),
    max_size=12,
)


@settings(max_examples=400, deadline=None)
@given(pieces, st.booleans())
@example([b"\x1b]0;title\x1b", b"[5n"], True)
@example([b"\x1b[" + b"1;" * 48 + b"1", b"m"], True)
def test_filter_whatever_comes_only_what_draws_survives(data: Sequence[bytes], utf8: bool) -> None:
    one = EscapeFilter(utf8=utf8)
    terminal = Terminal(utf8=utf8)
    for piece in data:
        terminal.feed(one.feed(piece))
        assert terminal.state == "ground"
    terminal.feed(one.close())
    assert [] == [told for told in terminal.told if not HARMLESS.fullmatch(told)]
    assert terminal.state == "ground"


@settings(max_examples=400, deadline=None)
@given(pieces)
def test_filter_for_another_encoding_is_safe_on_a_terminal_with_utf8(data: Sequence[bytes]) -> None:
    shown = filtered(b"".join(data), utf8=False)
    terminal = Terminal(utf8=True)
    terminal.feed(shown.decode("utf-8", "replace").encode())
    assert [] == [told for told in terminal.told if not HARMLESS.fullmatch(told)]
    assert not re.search(rb"[\x80-\x9f]", shown)


@settings(max_examples=400, deadline=None)
@given(pieces, st.booleans(), st.data())
def test_filter_however_it_is_cut_the_same_comes_out(data: Sequence[bytes], utf8: bool, cuts: st.DataObject) -> None:
    whole = b"".join(data)
    places = sorted(cuts.draw(st.sets(st.integers(0, len(whole)), max_size=6)))
    parts = [whole[a:b] for a, b in zip([0, *places], [*places, len(whole)], strict=True)]
    one, other, single = EscapeFilter(utf8=utf8), EscapeFilter(utf8=utf8), EscapeFilter(utf8=utf8)
    expected = one.feed(whole) + one.close()
    assert expected == b"".join(map(other.feed, parts)) + other.close()
    assert expected == b"".join(single.feed(bytes([byte])) for byte in whole) + single.close()


harmless = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=10),
        st.sampled_from(["\r\n", "\t", "\b", "\a", "\n"]),
        st.from_regex(r"\x1b\[[0-9]{0,3}(;[0-9]{1,3}){0,4}m", fullmatch=True),
        st.from_regex(r"\x1b\[38[;:]2([;:][0-9]{1,3}){3}m", fullmatch=True),
        st.from_regex(r"\x1b\[[0-9]{0,3}[ABCDEFGIJLMPSTXZ@`ade]", fullmatch=True).filter(lambda s: "J" not in s),
        st.from_regex(r"\x1b\[([0-9]{1,3};[0-9]{1,3})?[Hf]", fullmatch=True),
        st.sampled_from(
            ["\x1b[J", "\x1b[2J", "\x1b[K", "\x1b7", "\x1b8", "\x1bM", "\x1b[?25l", "\x1b[?1049h", "\x1b[5b"]
        ),
    ),
    max_size=20,
).map("".join)


@settings(max_examples=300, deadline=None)
@given(harmless)
def test_filter_text_colours_and_movements_are_unchanged(text: str) -> None:
    assert text.encode() == filtered(text.encode())


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(min_codepoint=0xA0, exclude_categories=["Cs"])))
def test_filter_for_another_encoding_keeps_what_is_no_control(text: str) -> None:
    raw = bytes(byte for byte in text.encode() if byte >= 0xA0)
    assert raw == filtered(raw, utf8=False)


@pytest.mark.parametrize(
    "attack",
    [
        b"\x1b]52;c;cm0gLXJmIH4K\x07",  # clipboard
        b"\x1b]0;title\x1b\\",
        b"\x1b]2;title\xc2\x9c",
        b"\x1bktitle\x1b\\",
        b"\x1b]4;1;?\x07",
        b"\x1b]10;?\x1b\\",
        b"\x1b]11;?\x07",
        b"\x1b]8;;http://example.org\x1b\\",
        b"\x1b]1337;File=:AAAA\x07",
        b"\x1b]P1ff0000\x07",
        b"\x1bP$qm\x1b\\",  # DECRQSS
        b"\x1bP+q544e\x1b\\",  # XTGETTCAP
        b"\x1bPtmux;\x1b\x1b]52;c;QQ==\x07\x1b\\",
        b"\x1b_Gi=1,a=q;AAAA\x1b\\",
        b"\x1b^private\x1b\\",
        b"\x1bXstring\x1b\\",
        b"\x1b[c",
        b"\x1b[0c",
        b"\x1b[>c",
        b"\x1b[=c",
        b"\x1bZ",
        b"\x05",  # ENQ
        b"\x1b[5n",
        b"\x1b[6n",
        b"\x1b[?6n",
        b"\x1b[>q",
        b"\x1b[?u",
        b"\x1b[>1u",
        b"\x1b[14t",
        b"\x1b[21t",
        b"\x1b[8;50;200t",
        b"\x1b[x",
        b"\x1b[?2026$p",
        b"\x1b[1;1;1;1;1;1*y",
        b"\x1b[5i",
        b"\x1b[?5i",
        b"\x1b[3J",
        b"\x1b[2h",  # locks the keyboard
        b"\x1b[?2l",  # VT52
        b"\x1b[?3h",
        b"\x1b[?1004h",
        b"\x1b%@",  # out of UTF-8
        b"\x1b%G",
        b"\x1b G",  # 8-bit answers
        b"\x1bc",
        b'\x1b[62;1"p',
        b"\x1b[>4;2m",
        b"\x1b[1;2;3;4;5T",  # highlight tracking
        b"\x1b[99999b",
        b"\x00\x11\x13\x7f",
    ],
)
def test_filter_attack_leaves_nothing(attack: bytes) -> None:
    # The positive control: a terminal would have done something.
    terminal = Terminal(utf8=False)
    terminal.feed(attack)
    assert terminal.told
    assert not all(HARMLESS.fullmatch(told) for told in terminal.told)
    assert filtered(b"before", attack, b"after").startswith(b"before")
    assert b"\x1b" not in filtered(attack)
    assert filtered(b"before" + attack + b"after") == b"beforeafter"


@pytest.mark.parametrize(
    ("data", "utf8", "shown"),
    [
        (b"\x9b31m", True, "�31m".encode()),
        (b"\xc2\x9b31m", True, "�31m".encode()),
        (b"\xc0\x9b", True, "��".encode()),
        (b"\xc2\x9b31m", False, b"\xc2?31m"),
        (b"\x9d52;c;QQ==\x07", False, b"?52;c;QQ==\x07"),
        ("é€😀".encode(), True, "é€😀".encode()),
    ],
)
def test_filter_eight_bit_control_is_replaced(data: bytes, utf8: bool, shown: bytes) -> None:
    assert shown == filtered(data, utf8=utf8)


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"\x1b[12\nx", b"\nx"),
        (b"\x1b\x1b[1mx", b"\x1b[1mx"),
        (b"\x1b[1\x1b[2mx", b"\x1b[2mx"),
        (b"\x1b[?25;1004;1049h", b"\x1b[?25;1049h"),
        (b"\x1b]0;never ended\x1b[1mx", b"\x1b[1mx"),
        (b"\x1b]0;never ended\x18x", b"x"),
        (b"\x1b[" + b"1;" * 200 + b"mx", b"1;" * 152 + b"mx"),
    ],
)
def test_filter_broken_sequence_is_dropped_and_what_follows_is_shown(data: bytes, shown: bytes) -> None:
    assert shown == filtered(data)


def test_filter_keeps_little_of_what_is_unfinished() -> None:
    one = EscapeFilter()
    one.feed(b"\x1b[" + b"1" * 50)
    one.feed(b"\x1b]" + b"x" * 10_000_000)
    assert one._rest == ""
    for _ in range(1000):
        one.feed(b"\x1b[1;2;3;4;5;6;7;8;9")
    assert len(one._rest) < 200


@pytest.mark.parametrize(
    ("data", "undone"),
    [
        (b"plain\x1b[1mbold\x1b[m", b""),
        (b"\x1b[31mred", b"\x1b[m"),
        (b"\x1b[?25l\x1b[?1049h\x1b[?1000;1006h", b"\x1b[?1049l\x1b[?25h\x1b[?1000l\x1b[?1006l"),
        (b"\x1b[?1049h\x1b[?1049l\x1b[?7l\x1b[?7h", b""),
        (b"\x1b(0\x0e\x1b=", b"\x1b(B\x0f\x1b>"),
        (b"\x1b(0qqq\x1b(B", b""),
        (b"\x1b[3;10r", b"\x1b7\x1b[r\x1b8"),
        (b"\x1b[4h", b"\x1b[4l"),
        (b"\x1b[2 q", b"\x1b[ q"),
    ],
)
def test_close_undoes_what_was_left_on_and_nothing_else(data: bytes, undone: bytes) -> None:
    one = EscapeFilter()
    one.feed(data)
    assert undone == one.close()
    assert one.close() == b""


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("plain: é€😀\nnext line", "plain: é€😀\nnext line"),
        ("\x1b]52;c;QQ==\x07", r"\x1b]52;c;QQ==\x07"),
        ("a\r\tb\x9b\u202e\u2028", r"a\r\tb\x9b\u202e\u2028"),
        ("\udcff\ud800\U000e0001", r"\xff\ud800\U000e0001"),
    ],
)
def test_printable_writes_out_what_is_not(text: str, written: str) -> None:
    assert written == printable(text)


class OnTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_shown_is_harmless_on_a_terminal_and_exact_elsewhere() -> None:
    assert "a\\x1b[5m\n" == shown("a\x1b[5m\n", OnTerminal())
    assert "a\x1b[5m\n" == shown("a\x1b[5m\n", io.StringIO())
