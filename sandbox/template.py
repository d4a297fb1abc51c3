"""A plan as init reads it: `csrc/init/plan.h` describes the same bytes."""

import struct
from collections.abc import Mapping
from itertools import accumulate
from typing import Final

from sandbox.plan import CALLS, MAX_SLOTS, OPERATIONS, Call, Command, Data, Late, Plan, Ref, Slot

_NUMBERS: Final = {name: 0x100 + i for i, name in enumerate(OPERATIONS)} | {name: i for i, name in enumerate(CALLS)}
_MAGIC, _VERSION = 0x584F4253, 4
_HEADER = struct.Struct("<16I")
SLOTS_OFFSET: Final = _HEADER.size
_HEADER_SIZE = SLOTS_OFFSET + 4 * MAX_SLOTS
_STEP = struct.Struct("<6Qqq2I2H6B2B2hB7x")
_VALUE, _DATA, _RESULT, _SLOT = range(4)
_ANY, _EQUAL, _AT_LEAST = range(3)
_MASK = 2**64 - 1


class Template:
    """A plan encoded for init, all but what a `Command` brings; made once, used for every launch."""

    def __init__(self, plan: Plan) -> None:
        calls = [call for _, call in plan.calls()]
        self.plan = plan
        self.slots = plan.slots
        self._index = {call.key: i for i, call in enumerate(calls)}
        self._late: list[tuple[int, str]] = []
        self._data_at: dict[int | bytes, int] = {}
        self._data = bytearray()
        self._relocations: list[tuple[int, int]] = []
        self._data_base = _HEADER_SIZE + _STEP.size * len(calls)
        steps = bytearray()
        for i, call in enumerate(calls):
            steps += self._step(call, _HEADER_SIZE + _STEP.size * i)
        self._data += bytes(-len(self._data) % 8)
        firsts = []
        first = 0
        for segment in plan.segments:
            firsts.append(first)
            first += len(segment)
        self._head = (
            _MAGIC,
            _VERSION,
            plan.flags,
            _HEADER_SIZE,
            len(calls),
            *firsts,
            *map(len, plan.segments),
        )
        self._fixed = bytes(_HEADER_SIZE) + bytes(steps) + bytes(self._data)
        self._last: tuple[tuple[tuple[bytes, ...], ...], bytes, int, dict[str, int]] = (), b"", 0, {}
        self._fixed_relocations = b"".join(struct.pack("<2I", at, count) for at, count in self._relocations)

    def _place(self, content: bytes, key: int | None) -> int:
        known: int | bytes = content if key is None else key
        at = self._data_at.get(known)
        if at is None:
            if key is not None:
                self._data += bytes(-len(self._data) % 8)
            at = self._data_at[known] = self._data_base + len(self._data)
            self._data += content
            if key is not None:
                # Results are stored with a width of up to 8 bytes, and read as such.
                self._data += bytes(max(0, 8 - len(content)))
        return at

    def _place_data(self, data: Data) -> int:
        known = self._data_at.get(data.key)
        if known is not None:
            return known
        content = bytearray(data.content)
        targets = [(offset, self._place_data(target)) for offset, target in data.pointers]
        for offset, target in targets:
            struct.pack_into("<Q", content, offset, target)
        at = self._place(bytes(content), data.key)
        self._relocations += [(at + offset, 1) for offset, _ in targets]
        return at

    def _step(self, call: Call, at: int) -> bytes:
        values = [0] * 6
        kinds = [_VALUE] * 6
        for i, arg in enumerate(call.args):
            match arg:
                case int():
                    values[i] = int(arg) & _MASK
                case str() | bytes():
                    raw = arg.encode("utf-8", "surrogateescape") if isinstance(arg, str) else arg
                    values[i], kinds[i] = self._place(raw + b"\0", None), _DATA
                case Data():
                    values[i], kinds[i] = self._place_data(arg), _DATA
                case Ref():
                    values[i], kinds[i] = self._index[arg.key], _RESULT
                case Slot():
                    values[i], kinds[i] = arg.number, _SLOT
                case Late():
                    self._late.append((at // 8 + i, arg.name))
                    kinds[i] = _DATA if arg.pointer else _VALUE
        store, width = 0, 0
        if isinstance(call.store, Slot):
            store, width = SLOTS_OFFSET + 4 * call.store.number, 4
        elif call.store is not None:
            data, offset, width = call.store
            store = self._place_data(data) + offset
        expectation, expect = _ANY, 0
        if call.equal is not None:
            expectation, expect = _EQUAL, call.equal
        elif call.at_least is not None:
            expectation, expect = _AT_LEAST, call.at_least
        tolerate = (*call.tolerate, 0, 0)[:2]
        return _STEP.pack(
            *values, expect, 0, store, call.fault, _NUMBERS[call.call], call.skip, *kinds, expectation, width,
            *tolerate, call.retry,
        )  # fmt: skip

    def _words(
        self, argv: tuple[bytes, ...], env: tuple[bytes, ...], candidates: tuple[bytes, ...]
    ) -> tuple[bytes, int, dict[str, int]]:
        """Lay out the strings of a command behind the fixed part: their bytes, how many pointers, where what is."""
        words = (*argv, *env, *candidates)
        pointers = len(self._fixed)
        # argv and envp end with a null pointer; candidates are counted.
        count = len(words) + 2
        strings = pointers + 8 * count
        offsets = [strings + at for at in accumulate([len(word) + 1 for word in words], initial=0)]
        argc, envc = len(argv), len(env)
        places = {
            "argv": pointers,
            "envp": pointers + 8 * (argc + 1),
            "candidates": pointers + 8 * (argc + envc + 2),
            "candidate_count": len(candidates),
        }
        tail = struct.pack(
            f"<{count}Q", *offsets[:argc], 0, *offsets[argc : argc + envc], 0, *offsets[argc + envc : -1]
        )
        if words:
            tail += b"\0".join(words) + b"\0"
        return tail, count, places

    def image(self, command: Command) -> bytearray:
        """Return the whole plan for one launch, without its slots.

        Raises:
            KeyError: The command lacks a value that the plan needs.
        """
        words = command[:3]
        # Most launches repeat the one before. Taken once: another thread may launch something else meanwhile.
        last = self._last
        if words != last[0]:
            last = self._last = words, *self._words(*words)
        _, tail, count, known = last
        pointers = len(self._fixed)
        out = bytearray(self._fixed)
        out += tail
        places = known.copy()
        for name, value in command.values:
            if isinstance(value, bytes):
                places[name] = len(out)
                places[name + ".size"] = len(value)
                out += value + b"\0"
            else:
                places[name] = value
        out += bytes(-len(out) % 8)
        with memoryview(out).cast("Q") as numbers:
            for at, name in self._late:
                numbers[at] = places[name]
        relocations = len(out)
        out += self._fixed_relocations + struct.pack("<2I", pointers, count)
        magic, version, flags, steps, step_count, *segments = self._head
        _HEADER.pack_into(
            out,
            0,
            magic,
            version,
            len(out),
            flags,
            steps,
            step_count,
            *segments,
            relocations,
            len(self._relocations) + 1,
            self.slots,
            0,
        )
        return out


def environment(variables: Mapping[str, str]) -> tuple[bytes, ...]:
    """Encode variables as execve wants them.

    Raises:
        TypeError: A name or a value is no str.
        ValueError: A name is empty or holds "=", or anything holds a NUL byte.
    """
    try:
        return tuple(_variable(name, value) for name, value in variables.items())
    except AttributeError:
        odd = next(item for item in variables.items() if not all(isinstance(one, str) for one in item))
        raise TypeError(f"env must map str to str, got {odd[0]!r}: {odd[1]!r}") from None


def _variable(name: str, value: str) -> bytes:
    raw_name = name.encode("utf-8", "surrogateescape")
    raw = raw_name + b"=" + value.encode("utf-8", "surrogateescape")
    if not raw_name or b"=" in raw_name or b"\0" in raw:
        raise ValueError(f"an environment variable's name must not be empty or hold '=' or NUL, got {name!r}")
    return raw


def candidates(program: bytes, path: str) -> tuple[bytes, ...]:
    """Return the paths that execve tries for a program: itself with a slash in it, else one a directory of PATH."""
    if b"/" in program:
        return (program,)
    folders = path.encode("utf-8", "surrogateescape").split(b":")
    return tuple([(folder.rstrip(b"/") or b"/.") + b"/" + program for folder in folders if folder]) or (program,)
