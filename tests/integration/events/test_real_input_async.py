"""Real programs and files through the asyncio twins, under asyncio's own loop and under uvloop.

What the synchronous objects make of the same is in test_watching_programs.py, test_pipes.py, test_aio.py and
test_fanotify_permission.py.
"""

import asyncio
import hashlib
import io
import os
import socket
import subprocess
import sys
import tarfile
import tempfile
import zipfile

import pytest
from event_kinds import in_loop
from watching import Told, on_disk

from sandbox.errors import UnsupportedError
from sandbox.events import (
    FAN_CLASS_CONTENT,
    FAN_EVENT_ON_CHILD,
    FAN_OPEN_PERM,
    Aio_async,
    Fanotify_async,
    Pidfd_async,
    RecursiveInotify_async,
    aligned_buffer,
)
from sandbox.primitives import IN_CREATE, IN_DELETE, IN_MOVE, SPLICE_F_MORE, SPLICE_F_NONBLOCK, splice

MIB = 1 << 20


async def ended(args: list[str], **options) -> tuple[int, bytes]:
    """Run a program to its end; return its status and what it complained about."""
    with tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(args, stdout=subprocess.DEVNULL, stderr=complaints, **options)
        async with Pidfd_async(process.pid, reap=False) as end:
            await end.get()
        status = process.wait()
        complaints.seek(0)
        return status, complaints.read()


async def assert_told(root: str, args: list[str], **options) -> set[str]:
    """Watch a directory while a program fills it; return the files."""
    known = Told()
    last = os.path.join(root, "that is all")

    async def run_and_say_so() -> None:
        assert (0, b"") == await ended(args, **options)
        os.mkdir(last)

    async with RecursiveInotify_async(root, IN_CREATE | IN_DELETE | IN_MOVE) as watch:
        running = asyncio.ensure_future(run_and_say_so())
        async for event in watch:
            known.hear([event])
            if event.path == last:
                break
        await running
    directories, files = on_disk(root)
    assert directories == known.directories
    assert files == known.files
    assert 0 == known.overflows
    return files


@pytest.mark.needs_program("git")
@in_loop
async def test_git_clone_is_told_completely(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    target.mkdir()
    environment = {**os.environ, "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1"}
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for number in range(60):
        folder = source / f"folder-{number % 12}" / f"below-{number % 7}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"file-{number}").write_text(str(number))
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "all"]):
        subprocess.run(["git", *command], check=True, cwd=source, env=environment)
    command = ["git", "clone", "-q", "--no-local", str(source), str(target / "clone")]
    files = await assert_told(str(target), command, env=environment)
    assert 60 == len([name for name in files if "/.git/" not in name])


@pytest.mark.needs_user  # either privilege reads the same events
@in_loop
async def test_pip_install_of_a_wheel_is_told_completely(tmp_path):
    wheel, target = tmp_path / "watched-1.0-py3-none-any.whl", tmp_path / "target"
    target.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        for number in range(100):
            archive.writestr(f"watched/part_{number % 20}/module_{number}.py", f"value = {number}\n")
        archive.writestr("watched-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: watched\nVersion: 1.0\n")
        about = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        archive.writestr("watched-1.0.dist-info/WHEEL", about)
        archive.writestr("watched-1.0.dist-info/RECORD", "")
    command = [sys.executable, "-m", "pip", "--isolated", "-q", "install", "--disable-pip-version-check", "--no-index"]
    command += ["--no-deps", "--no-cache-dir", "--target", str(target), str(wheel)]
    environment = {**os.environ, "HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    files = await assert_told(str(target), command, env=environment, cwd=tmp_path)
    assert 100 == len([name for name in files if "/module_" in name and name.endswith(".py")])


@pytest.mark.needs_user
@pytest.mark.needs_program("tar")
@in_loop
async def test_unpacking_ten_thousand_files_is_told_completely(tmp_path):
    archive, target = tmp_path / "many.tar", tmp_path / "target"
    target.mkdir()
    with tarfile.open(archive, "w") as tar:
        for number in range(10_500):
            member = tarfile.TarInfo(f"include/part-{number % 97}/header-{number}.h")
            member.size = 4
            tar.addfile(member, io.BytesIO(b"/**/"))
    files = await assert_told(str(target), ["tar", "-xf", str(archive), "-C", str(target)])
    assert 10_500 == len(files)


@in_loop
async def test_file_served_over_tcp_by_splice_arrives_byte_for_byte(tmp_path):
    loop = asyncio.get_running_loop()
    content = os.urandom(MIB) * 4 + b"tail"
    (tmp_path / "served").write_bytes(content)

    async def receive(address: tuple[str, int]) -> bytes:
        reader, writer = await asyncio.open_connection(*address)
        received = await reader.read()
        writer.close()
        await writer.wait_closed()
        return received

    async def send(client: socket.socket) -> None:
        """Splice into a socket that takes less than it is offered; wait only while it takes nothing."""
        read_end, write_end = os.pipe()
        try:
            with open(tmp_path / "served", "rb", buffering=0) as file:
                while left := splice(file, write_end, 1 << 16):
                    while left:
                        try:
                            left -= splice(read_end, client, left, flags=SPLICE_F_MORE | SPLICE_F_NONBLOCK)
                        except BlockingIOError:
                            writable = loop.create_future()
                            loop.add_writer(client, lambda one: one.done() or one.set_result(None), writable)
                            await writable
                            loop.remove_writer(client)
        finally:
            os.close(read_end)
            os.close(write_end)

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        receiving = asyncio.ensure_future(receive(server.getsockname()))
        client, _ = await loop.sock_accept(server)
        with client:
            await send(client)
        received = await receiving
    assert hashlib.sha256(content).digest() == hashlib.sha256(received).digest()


@pytest.mark.parametrize("backend", ["io_uring", "linux_aio"])
@in_loop
async def test_direct_copy_is_exact(tmp_path, backend):
    size, block = 32 * MIB + 8192, 1 << 18
    content = b"".join(number.to_bytes(8, "little") * 512 for number in range(size // 4096))
    (tmp_path / "source").write_bytes(content)
    try:
        source = os.open(tmp_path / "source", os.O_RDONLY | os.O_DIRECT)
    except OSError as error:
        pytest.skip(f"no O_DIRECT in {tmp_path}: {error}")
    target = os.open(tmp_path / "target", os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
    try:
        aio = Aio_async(depth=32, backend=backend)
    except UnsupportedError as error:
        pytest.skip(str(error))
    async with aio:

        async def copy(first: int, step: int) -> None:
            for offset in range(first, size, step):
                aio.read(source, buffers[first // block], offset, tag=(True, first // block, offset))
                await turn[first // block].wait()
                turn[first // block].clear()

        buffers = [aligned_buffer(block) for _ in range(8)]
        turn = [asyncio.Event() for _ in buffers]
        copies = [asyncio.ensure_future(copy(number * block, 8 * block)) for number in range(8)]
        written = 0
        while written < size:
            event = await aio.get()
            assert event.error is None
            reads, number, offset = event.tag
            if reads:
                aio.write(target, buffers[number][: event.result], offset, tag=(False, number, offset))
            else:
                written += event.result
                turn[number].set()
        await asyncio.gather(*copies)
    os.close(source)
    os.close(target)
    assert hashlib.sha256(content).digest() == hashlib.sha256((tmp_path / "target").read_bytes()).digest()


@pytest.mark.needs_root
@pytest.mark.needs_program("gcc")
@in_loop
async def test_broker_guards_a_directory_against_a_compiler_run(tmp_path):
    guarded, outside = tmp_path / "guarded", tmp_path / "outside"
    guarded.mkdir()
    outside.mkdir()
    (guarded / "open.h").write_text("#define OPEN 0\n")
    (guarded / "secret.h").write_text("#define SECRET 1\n")
    (guarded / "good.c").write_text('#include "open.h"\nint main(void) { return OPEN; }\n')
    (guarded / "bad.c").write_text('#include "secret.h"\nint main(void) { return SECRET; }\n')
    seen = []
    async with Fanotify_async(FAN_CLASS_CONTENT) as fan:

        async def broker() -> None:
            async for event in fan:
                with event:
                    seen.append(os.path.basename(event.filename))
                    if seen[-1] == "secret.h":
                        event.deny()
                    else:
                        event.allow()

        fan.watch(guarded, FAN_OPEN_PERM | FAN_EVENT_ON_CHILD)
        answering = asyncio.ensure_future(broker())
        compile_one = [
            ended(["gcc", "-o", str(outside / name), str(guarded / f"{name}.c")]) for name in ("good", "bad")
        ]
        async with asyncio.timeout(60):
            (good, _), (bad, complaint) = await asyncio.gather(*compile_one)
    await answering  # the end of the queue is the end of the iteration
    assert (0, 1) == (good, bad)
    assert b"secret.h" in complaint
    assert {"open.h", "secret.h", "good.c", "bad.c"} <= set(seen)
