"""Frozen dataclasses that the import of the package can afford: what `dataclass` writes for each is here once."""

from dataclasses import MISSING, Field, FrozenInstanceError, dataclass, field
from typing import Any, ClassVar, NoReturn, dataclass_transform


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
class Frozen:
    """A value: made from its fields, compared, hashed and shown by them, never changed.

    `dataclasses.fields`, `replace` and `asdict` take it as any frozen dataclass.
    """

    __match_args__: ClassVar[tuple[str, ...]]
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __init_subclass__(cls) -> None:
        """Let `dataclass` collect the fields, and write nothing."""
        dataclass(init=False, repr=False, eq=False)(cls)

    def __init__(self, *values: Any, **named: Any) -> None:
        cls, fields = type(self).__name__, self.__match_args__
        if len(values) > len(fields):
            raise TypeError(f"{cls}() takes {len(fields)} values at most, got {len(values)}")
        for name, value in zip(fields, values, strict=False):
            if name in named:
                raise TypeError(f"{cls}() got two values for {name}")
            named[name] = value
        for one in self.__dataclass_fields__.values():
            if one.name in named:
                continue
            if one.default_factory is not MISSING:
                named[one.name] = one.default_factory()
            elif one.default is not MISSING:
                named[one.name] = one.default
            else:
                raise TypeError(f"{cls}() needs a value for {one.name}")
        if len(named) > len(fields):
            raise TypeError(f"{cls}() has no field {min(named.keys() - set(fields))}")
        self.__dict__.update(named)

    def _values(self) -> tuple[object, ...]:
        return tuple(map(self.__dict__.__getitem__, self.__match_args__))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Frozen) or type(other) is not type(self):
            return NotImplemented
        return self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        shown = (f"{name}={value!r}" for name, value in zip(self.__match_args__, self._values(), strict=True))
        return f"{type(self).__name__}({', '.join(shown)})"

    def __setattr__(self, name: str, _: object) -> NoReturn:
        raise FrozenInstanceError(f"{name} of a value cannot be changed: dataclasses.replace() makes another value")

    def __delattr__(self, name: str) -> NoReturn:
        raise FrozenInstanceError(f"{name} of a value cannot be deleted")
