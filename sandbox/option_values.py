"""The words that options take: cut at their separators and read."""

from collections.abc import Sequence


class OptionError(ValueError):
    """The command line says something wrong; the message is for the person who typed it."""


def cut(text: str, separator: str) -> tuple[str, str | None]:
    """Cut at the first separator that no backslash precedes; neither part is unescaped."""
    escaped = False
    for i, letter in enumerate(text):
        if letter == separator and not escaped:
            return text[:i], text[i + 1 :]
        escaped = letter == "\\" and not escaped
    return text, None


def plain(text: str) -> str:
    r"""Take away the backslashes that made `:`, `=` and `\` plain text; any other backslash is one."""
    result = ""
    letters = iter(text)
    for letter in letters:
        if letter == "\\":
            following = next(letters, "")
            letter = following if following and following in ":=\\" else letter + following
        result += letter
    return result


def fields(text: str, most: int) -> list[str]:
    """Split at colons into at most so many parts, and make them plain; missing ones are empty.

    Raises:
        OptionError: There are more.
    """
    parts = []
    rest: str | None = text
    while rest is not None:
        part, rest = cut(rest, ":")
        parts.append(plain(part))
    if len(parts) > most:
        raise OptionError(f"{text!r} has {len(parts)} parts where at most {most} are taken")
    return parts + [""] * (most - len(parts))


def flags(text: str, names: Sequence[str], other: str = "") -> dict[str, str]:
    """Read words between commas, some with a value; `other` is what else the caller takes."""
    found = {}
    for word in text.split(",") if text else ():
        name, equals, value = word.partition("=")
        if name + equals not in names:
            known = ", ".join(name + "..." if name.endswith("=") else name for name in names)
            raise OptionError(f"{word!r} is none of {other}{known}")
        found[name] = value
    return found


def number(text: str, what: str, base: int = 10) -> int:
    """Read a number.

    Raises:
        OptionError: It is none.
    """
    try:
        return int(text, base)
    except ValueError:
        kind = "an octal number" if base == 8 else "a number"
        raise OptionError(f"{what} must be {kind}, got {text!r}") from None


def decimal(text: str) -> float:
    """Read a number that need not be whole."""
    try:
        return float(text)
    except ValueError:
        raise OptionError(f"takes a number, got {text!r}") from None


def whole(text: str) -> int:
    """Read a whole number."""
    return number(text, "the value")


def processors(text: str) -> list[int]:
    """Read numbers and ranges between commas, as the kernel writes them."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        low = number(first, "a processor")
        high = number(last, "a processor") if dash else low
        if not 0 <= low <= high < 1 << 16:
            raise OptionError(f"takes processors such as 0,2-3, got {text!r}")
        found += range(low, high + 1)
    return found
