"""Plans: what Template writes is what csrc/init reads."""

import json
import os
import pickle
import re
import struct

import pytest
from harness import REPOSITORY

from sandbox import kernel as k, plan as plans, template
from sandbox.kernel import Flag
from sandbox.plan import Command, Data, Late, Plan, Program
from sandbox.template import Template, candidates

HEADER = struct.Struct("<16I")
STEP = struct.Struct("<6Qqq2I2H6B2B2hB7x")
VALUE, DATA, RESULT, SLOT = range(4)


def source(name):
    with open(os.path.join(REPOSITORY, "csrc/init", name)) as stream:
        return stream.read()


def header(image):
    names = (
        "magic version size flags steps step_count f0 f1 f2 c0 c1 c2 relocations relocation_count slot_count reserved"
    )
    return dict(zip(names.split(), HEADER.unpack_from(image), strict=True))


def steps_of(image):
    head = header(image)
    names = ("expect", "result", "store", "fault", "call", "skip")
    found = []
    for i in range(head["step_count"]):
        raw = STEP.unpack_from(image, head["steps"] + STEP.size * i)
        step = dict(zip(names, raw[6:12], strict=True))
        step |= {"args": raw[:6], "kinds": raw[12:18], "expectation": raw[18], "width": raw[19]}
        step |= {"tolerate": raw[20:22], "retry": raw[22]}
        found.append(step)
    return found


def text_at(image, offset):
    return bytes(image[offset : image.index(0, offset)])


def sample():
    program = Program()
    program.segment, program.origin = "stage", "one"
    fd = program.call("openat", k.AT_FDCWD, "/proc", k.O_PATH, 0, name="proc")
    buffer = program.data(bytes(16), "buffer")
    program.call("fstatfs", fd, buffer, store=(buffer, 8, 4), equal=7, tolerate=(2, 13), skip=1, retry=9)
    program.segment, program.origin = "init", "two"
    program.call("read", fd, buffer, Late("count"), at_least=-1)
    slot = program.slot("extra")
    program.call("dup", slot)
    program.segment, program.origin = "payload", "three"
    program.call("execve", Late("candidates", pointer=True), Late("candidate_count"), Late("argv", pointer=True),
                 Late("envp", pointer=True))  # fmt: skip
    return program.plan(Command())


COMMAND = Command((b"cmd", b"\xff", b""), (b"A=1",), (b"/a/cmd", b"/b/cmd"), (("count", 5), ("blob", b"xyz")))


def test_calls_are_those_of_the_header_in_its_order():
    assert re.findall(r"^CALL\((\w+)\)", source("calls.h"), re.MULTILINE) == list(plans.CALLS)


def test_operations_are_the_headers_enumeration():
    body = re.search(r"enum native \{(.*?)NATIVE_END", source("plan.h"), re.DOTALL)[1]
    names = re.findall(r"^\s*OP_(\w+)", body, re.MULTILINE)
    assert len(names) == len(plans.OPERATIONS)
    said = {"AWAIT": "await_release", "DROP_BOUNDING": "drop_bounding_set", "LIFELINE": "check_lifeline",
            "SPAWN": "fork_payload", "PLACE": "place_fds", "EXEC": "execve", "LISTEN": "seccomp_listen",
            "BECOME": "become_payload"}  # fmt: skip
    assert [said.get(name, name.lower()) for name in names] == list(plans.OPERATIONS)


def test_no_name_is_a_call_and_an_operation():
    assert not set(plans.CALLS) & set(plans.OPERATIONS)
    assert len(set(plans.CALLS)) == len(plans.CALLS)


@pytest.mark.parametrize("name", ["MAX_SLOTS"])
def test_limits_are_the_headers(name):
    assert re.search(rf"#define {name} (\d+)", source("plan.h"))[1] == str(getattr(plans, name))


def test_record_types_are_the_headers():
    from sandbox import records

    body = re.search(r"enum record_type \{(.*?)\};", source("plan.h"), re.DOTALL)[1]
    number = 0
    for name, value in re.findall(r"^\s*([RQ]_\w+)(?: = (\d+))?,", body, re.MULTILINE):
        number = int(value) if value else number
        assert number == getattr(records, name)
        number += 1


def test_image_header_says_its_own_size_and_segments():
    image = Template(sample()).image(COMMAND)
    head = header(image)
    assert (0x584F4253, template._VERSION, len(image)) == (head["magic"], head["version"], head["size"])
    assert [0, 2, 4, 2, 2, 1] == [head[name] for name in ("f0", "f1", "f2", "c0", "c1", "c2")]
    assert (5, 7, 0, 1) == (head["step_count"], head["slot_count"], head["reserved"], head["flags"])
    assert 0 == head["steps"] % 8 == head["relocations"] % 8
    assert STEP.size == 96


def test_image_arguments_are_numbers_offsets_results_and_slots():
    image = Template(sample()).image(COMMAND)
    first, second, third, fourth, _ = steps_of(image)
    assert (VALUE, DATA, VALUE, VALUE) == first["kinds"][:4]
    assert 2**64 - 100 == first["args"][0]
    assert b"/proc" == text_at(image, first["args"][1])
    assert (RESULT, DATA) == second["kinds"][:2]
    assert 0 == second["args"][0]
    # The same Data is the same memory, whoever refers to it.
    assert second["args"][1] == third["args"][1]
    assert 0 == third["args"][1] % 8
    assert (SLOT, 6) == (fourth["kinds"][0], fourth["args"][0])


def test_image_keeps_expectation_store_tolerance_and_retry():
    second, third = steps_of(Template(sample()).image(COMMAND))[1:3]
    assert (1, 7) == (second["expectation"], second["expect"])
    assert (second["args"][1] + 8, 4) == (second["store"], second["width"])
    assert ((2, 13), 1, 9) == (second["tolerate"], second["skip"], second["retry"])
    assert (2, -1) == (third["expectation"], third["expect"])


def test_image_late_values_are_filled_in():
    image = Template(sample()).image(COMMAND)
    third, last = steps_of(image)[2], steps_of(image)[4]
    assert (5, VALUE) == (third["args"][2], third["kinds"][2])
    at, count = struct.unpack_from("<2I", image, header(image)["relocations"])
    assert (DATA, VALUE, DATA, DATA) == last["kinds"][:4]
    where, number, argv, envp = last["args"][:4]
    assert 2 == number
    pointers = struct.unpack_from(f"<{count}Q", image, at)

    def strings(start, how_many):
        chosen = pointers[(start - at) // 8 :][:how_many]
        return [text_at(image, one) if one else None for one in chosen]

    assert [b"cmd", b"\xff", b"", None] == strings(argv, 4)
    assert [b"A=1", None] == strings(envp, 2)
    assert [b"/a/cmd", b"/b/cmd"] == strings(where, 2)
    assert count == (where - at) // 8 + 2


def test_image_of_an_empty_command_has_its_null_pointers():
    image = Template(sample()).image(Command(values=(("count", 1),)))
    at, count = struct.unpack_from("<2I", image, header(image)["relocations"])
    assert (2, (0, 0)) == (count, struct.unpack_from("<2Q", image, at))


def test_image_without_a_needed_value_is_refused():
    with pytest.raises(KeyError):
        Template(sample()).image(Command())


def test_image_does_not_change_the_template():
    template = Template(sample())
    assert template.image(COMMAND) == template.image(COMMAND)


def test_equal_strings_are_stored_once():
    program = Program()
    for _ in range(50):
        program.call("chdir", "/the/same/path")
    assert 1 == bytes(Template(program.plan(Command())).image(Command())).count(b"/the/same/path")


def test_with_fault_sets_that_step_only():
    for number in range(1, 6):
        faulty = sample().with_fault(number, 28)
        assert [28 if i == number else 0 for i in range(1, 6)] == [c.fault for _, c in faulty.calls()]
        assert [28 if i == number else 0 for i in range(1, 6)] == [
            step["fault"] for step in steps_of(Template(faulty).image(COMMAND))
        ]


@pytest.mark.parametrize(("step", "number"), [(0, 1), (6, 1), (-1, 1), (1, 0), (1, 4096), (1, -1)])
def test_with_fault_wrong_step_or_errno_is_refused(step, number):
    with pytest.raises(ValueError, match="must be between"):
        sample().with_fault(step, number)


def test_plan_prints_grouped_by_segment_and_origin():
    lines = str(sample()).splitlines()
    assert ["# stage 1, in the caller's namespaces", "from: one"] == lines[:2]
    assert '   1  openat(AT_FDCWD, "/proc", O_PATH, 0) = proc' == lines[2]
    assert "   2  fstatfs(proc, buffer)  # unless ENOENT or EACCES" == lines[3]
    assert ["from: two", "from: three"] == [line for line in lines if line.startswith("from:")][1:]
    assert "# fault: ENOSPC" in str(sample().with_fault(1, 28))


def test_plan_as_json_has_every_step():
    steps = json.loads(sample().to_json())["steps"]
    assert [1, 2, 3, 4, 5] == [step["number"] for step in steps]
    assert ["AT_FDCWD", "/proc", "O_PATH", 0] == steps[0]["args"]
    assert {"stage", "init", "payload"} == {step["segment"] for step in steps}


def test_plan_compares_hashes_and_pickles():
    assert sample() == sample()
    assert hash(sample()) == hash(sample())
    assert sample() != sample().with_fault(1, 1)
    again = pickle.loads(pickle.dumps(sample()))
    assert sample() == again
    assert str(sample()) == str(again)
    assert bytes(Template(again).image(COMMAND)) == bytes(Template(sample()).image(COMMAND))


def test_plan_has_room_for_so_many_slots():
    program = Program()
    for _ in range(plans.MAX_SLOTS - len(plans.SLOTS)):
        program.slot("x")
    with pytest.raises(ValueError, match="256"):
        program.slot("one more")


def test_flags_join_their_names():
    assert "O_PATH|O_CLOEXEC" == (k.O_PATH | k.O_CLOEXEC).text
    assert k.O_PATH == (k.O_PATH | 0)
    assert Flag(3, "x") == pickle.loads(pickle.dumps(Flag(3, "x")))
    assert "x" == pickle.loads(pickle.dumps(Flag(3, "x"))).text


@pytest.mark.parametrize(
    ("program", "path", "expected"),
    [
        (b"a", "/x:/y", (b"/x/a", b"/y/a")),
        (b"a", "/x/::/y//", (b"/x/a", b"/y/a")),
        (b"a", "/", (b"/./a",)),
        (b"./a", "/x", (b"./a",)),
        (b"/a", "/x", (b"/a",)),
        (b"a", "", (b"a",)),
    ],
)
def test_candidates_are_those_of_execvp(program, path, expected):
    assert expected == candidates(program, path)


def test_constants_are_the_kernels():
    for name in ("O_CLOEXEC", "O_PATH", "O_DIRECTORY", "O_NOFOLLOW"):
        assert getattr(os, name) == getattr(k, name)
    from sandbox import primitives

    for name, value in vars(k).items():
        if isinstance(value, Flag) and hasattr(primitives, name):
            assert getattr(primitives, name) == value, name


def test_data_told_apart_by_key():
    assert Data(b"x", "x", 1) != Data(b"x", "x", 2)
    assert isinstance(sample(), Plan)
