"""Classic BPF as seccomp(2) takes it: encoding, the kernel's rules for it, and an interpreter."""

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from sandbox.errors import FilterError

MAX_INSTRUCTIONS: Final = 4096  # BPF_MAXINSNS
DATA_SIZE: Final = 64  # sizeof(struct seccomp_data)

LD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
AND: Final = 0x54  # BPF_ALU | BPF_AND | BPF_K
JA: Final = 0x05
JEQ: Final = 0x15
JGT: Final = 0x25
JGE: Final = 0x35
JSET: Final = 0x45
RET: Final = 0x06  # BPF_RET | BPF_K
RET_A: Final = 0x16

_FORMAT: Final = struct.Struct("=HBBI")
_DATA: Final = struct.Struct("=iIQ6Q")
_WORD: Final = 0xFFFFFFFF

_ALU: Final = {
    0x00: "add", 0x10: "sub", 0x20: "mul", 0x30: "div", 0x40: "or", 0x50: "and", 0x60: "lsh", 0x70: "rsh",
    0x80: "neg", 0xA0: "xor",
}  # fmt: skip
_JUMPS: Final = {0x10: "jeq", 0x20: "jgt", 0x30: "jge", 0x40: "jset"}


class Instruction(NamedTuple):
    """struct sock_filter."""

    code: int
    jt: int
    jf: int
    k: int


def encode(program: Sequence[Instruction]) -> bytes:
    """Return the program as the kernel reads it: an array of struct sock_filter, native byte order."""
    return b"".join(_FORMAT.pack(*instruction) for instruction in program)


def decode(raw: bytes) -> tuple[Instruction, ...]:
    """Return the instructions of a raw program, checked as the kernel checks them.

    Raises:
        FilterError: The kernel would refuse it; the instruction and the reason.
    """
    if not raw or len(raw) % _FORMAT.size:
        raise FilterError(f"a program is a positive multiple of {_FORMAT.size} bytes, got {len(raw)}")
    program = tuple(Instruction(*fields) for fields in _FORMAT.iter_unpack(raw))
    if len(program) > MAX_INSTRUCTIONS:
        raise FilterError(f"a program has at most {MAX_INSTRUCTIONS} instructions, got {len(program)}")
    for position, instruction in enumerate(program):
        reason = _fault(instruction, position, len(program))
        if reason:
            raise FilterError(f"instruction {position} ({instruction.code:#04x}): {reason}")
    if program[-1].code not in (RET, RET_A):
        raise FilterError("the last instruction must be a return")
    return program


def _fault(instruction: Instruction, position: int, length: int) -> str | None:
    code, jt, jf, k = instruction
    kind = code & 0x07
    room = length - position - 1
    if code == LD:
        return None if k % 4 == 0 and k < DATA_SIZE else f"no word of the call at offset {k}"
    if code in (0x80, 0x81, 0x00, 0x01, RET, RET_A, 0x07, 0x87):  # len, imm, ret, tax, txa
        return None
    if code in (0x60, 0x61, 0x02, 0x03):  # scratch memory
        return None if k < 16 else f"no scratch word {k}"
    if kind == 0x04 and code & 0xF0 in _ALU and code & ~0xF8 == 0x04:
        operation = _ALU[code & 0xF0]
        if operation == "neg":
            return None if not code & 0x08 else "neg has no operand"
        if not code & 0x08 and operation == "div" and k == 0:
            return "division by zero"
        if not code & 0x08 and operation in ("lsh", "rsh") and k >= 32:
            return f"shift by {k}"
        return None
    if code == JA:
        return None if k < room else "jump out of the program"
    if kind == 0x05 and code & 0xF0 in _JUMPS and code & ~0xF8 == 0x05:
        return None if max(jt, jf) < room else "jump out of the program"
    return "not allowed in a filter"


def call_data(number: int, audit_arch: int, args: Sequence[int], instruction_pointer: int = 0) -> bytes:
    """Return struct seccomp_data; arguments left out are 0."""
    words = [value & 0xFFFFFFFFFFFFFFFF for value in args]
    words += [0] * (6 - len(words))
    signed = number - (1 << 32) if number >> 31 else number
    return _DATA.pack(signed, audit_arch, instruction_pointer, *words)


def run(program: Sequence[Instruction], data: bytes) -> tuple[int, list[int]]:
    """Run a program as the kernel would.

    Args:
        program: As `decode` returns it.
        data: struct seccomp_data, 64 bytes.

    Returns:
        The number that it returns, and the positions of the instructions that were run.
    """
    words = struct.unpack("=16I", data)
    accumulator = register = position = 0
    memory = [0] * 16
    path: list[int] = []
    while True:
        path.append(position)
        code, jt, jf, k = program[position]
        position += 1
        kind = code & 0x07
        if kind == 0x05:
            if code == JA:
                position += k
                continue
            operand = register if code & 0x08 else k
            jump = code & 0xF0
            if jump == 0x10:
                taken = accumulator == operand
            elif jump == 0x20:
                taken = accumulator > operand
            elif jump == 0x30:
                taken = accumulator >= operand
            else:
                taken = bool(accumulator & operand)
            position += jt if taken else jf
        elif code == LD:
            accumulator = words[k // 4]
        elif kind == 0x04:
            computed = _compute(_ALU[code & 0xF0], accumulator, register if code & 0x08 else k)
            if computed is None:  # division by zero ends the program: SECCOMP_RET_KILL_THREAD
                return 0, path
            accumulator = computed
        elif kind == 0x06:
            return accumulator if code == RET_A else k, path
        elif code == 0x07:
            register = accumulator
        elif code == 0x87:
            accumulator = register
        elif code == 0x02:
            memory[k] = accumulator
        elif code == 0x03:
            memory[k] = register
        else:
            value = {0x00: k, 0x80: DATA_SIZE, 0x60: memory[k & 15]}.get(code & 0xFE, 0)
            if code & 1:
                register = value
            else:
                accumulator = value


def _compute(operation: str, left: int, right: int) -> int | None:
    match operation:
        case "add":
            result = left + right
        case "sub" | "neg":
            result = left - right if operation == "sub" else -left
        case "mul":
            result = left * right
        case "div":
            if right == 0:
                return None
            result = left // right
        case "or":
            result = left | right
        case "and":
            result = left & right
        case "xor":
            result = left ^ right
        case "lsh":
            result = left << (right & 31)
        case _:
            result = left >> (right & 31)
    return result & _WORD
