"""Conditions on the arguments of a call: `arg(1) == "TIOCSTI"`, `(arg(0) & "CLONE_NEWUSER") == 0`."""

from dataclasses import dataclass
from typing import Any, Literal, NoReturn, TypeAlias

Value: TypeAlias = int | str
Operation: TypeAlias = Literal["==", "!=", "<", "<=", ">", ">=", "one_of", "between"]


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition on one argument; made by the operators and methods of `arg()`.

    It has no truth value, so that `a and b`, `not a` and `0 < arg(1) < 5` are a TypeError and never a silent yes:
    give several conditions to one rule (all must hold), or write several rules (one must hold).

    Attributes:
        index: Number of the argument, 0 to 5.
        mask: What is kept of the argument before it is compared, or None.
        operation: How it is compared.
        values: With what: one value, two for `between`, any number for `one_of`.
    """

    index: int
    mask: Value | None
    operation: Operation
    values: tuple[Value, ...]

    def __bool__(self) -> NoReturn:
        raise TypeError(
            "a condition has no truth value: pass several conditions to one rule (all must hold), "
            "write several rules (one must hold), or use one_of() and between()"
        )

    def __repr__(self) -> str:
        left = f"arg({self.index})"
        if self.mask is not None:
            left = f"({left} & {_show(self.mask)})"
        shown = ", ".join(_show(value) for value in self.values)
        if self.operation in ("one_of", "between"):
            return f"{left}.{self.operation}({shown})"
        return f"{left} {self.operation} {shown}"


def _show(value: Value) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    return str(value) if -4096 < value < 4096 else hex(value)


def _checked(value: Value, name: str = "value") -> Value:
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int or the name of a constant, not {type(value).__name__}")
    if not -(2**63) <= value < 2**64:
        raise ValueError(f"{name} must fit into 64 bits, got {value}")
    return value


@dataclass(frozen=True, slots=True, eq=False)
class Arg:
    """An argument of a system call, before it is compared; see `arg()`.

    Attributes:
        index: Which, from 0.
        mask: What of it is compared; None: all bits.
    """

    index: int
    mask: Value | None = None

    def _compare(self, operation: Operation, *values: Value) -> Condition:
        checked = tuple(_checked(value) for value in values)
        if operation not in ("==", "!=", "one_of"):
            for value in checked:
                # Whether the kernel reads an argument as signed is its own business; a program compares bits.
                if isinstance(value, int) and value < 0:
                    raise ValueError(f"value must not be negative: {operation} compares unsigned, got {value}")
        return Condition(self.index, self.mask, operation, checked)

    def eq(self, value: Value, /) -> Condition:
        """Hold when the argument equals the value; a negative one stands for its two's complement."""
        return self._compare("==", value)

    def ne(self, value: Value, /) -> Condition:
        """Hold when the argument differs from the value."""
        return self._compare("!=", value)

    def lt(self, value: Value, /) -> Condition:
        """Hold when the argument is less than the value; both unsigned."""
        return self._compare("<", value)

    def le(self, value: Value, /) -> Condition:
        """Hold when the argument is at most the value; both unsigned."""
        return self._compare("<=", value)

    def gt(self, value: Value, /) -> Condition:
        """Hold when the argument is greater than the value; both unsigned."""
        return self._compare(">", value)

    def ge(self, value: Value, /) -> Condition:
        """Hold when the argument is at least the value; both unsigned."""
        return self._compare(">=", value)

    __lt__ = lt
    __le__ = le
    __gt__ = gt
    __ge__ = ge

    def __eq__(self, value: Value, /) -> Condition:  # type: ignore[override]  # as SQLAlchemy's columns
        return self.eq(value)

    def __ne__(self, value: Value, /) -> Condition:  # type: ignore[override]
        return self.ne(value)

    __hash__ = None  # type: ignore[assignment]  # equality makes a condition, it does not compare

    def __and__(self, mask: Value, /) -> "Arg":
        if self.mask is not None:
            raise ValueError(f"argument {self.index} has a mask already: join the two masks")
        return Arg(self.index, _checked(mask, "mask"))

    __rand__ = __and__

    def one_of(self, *values: Value) -> Condition:
        """Hold when the argument equals one of the values.

        Raises:
            ValueError: No value given.
        """
        if not values:
            raise ValueError("one_of() needs at least one value")
        return self._compare("one_of", *values)

    def between(self, low: Value, high: Value) -> Condition:
        """Hold when the argument lies between the two values, both included.

        Args:
            low: The least.
            high: The greatest.

        Raises:
            ValueError: The first is more than the second: it would never hold.
        """
        if isinstance(low, int) and isinstance(high, int) and low > high:
            raise ValueError(f"low must not be more than high, got {low} and {high}")
        return self._compare("between", low, high)


def arg(index: Literal[0, 1, 2, 3, 4, 5]) -> Arg:
    """Name an argument of a system call, for a condition of a rule.

    Args:
        index: 0 to 5.

    Raises:
        ValueError: No such argument.
    """
    number: Any = index
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"index must be an int, not {type(number).__name__}")
    if not 0 <= number <= 5:
        raise ValueError(f"index must be between 0 and 5, got {number}")
    return Arg(number)
