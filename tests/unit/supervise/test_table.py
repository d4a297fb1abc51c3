import io
import time

import pytest

from sandbox import Result
from sandbox.supervise.model import ServiceStatus, State
from sandbox.supervise.table import table

pytest.importorskip("rich")


@pytest.mark.parametrize("width", [60, 80, 200])
def test_table_long_text_gives_way_and_nothing_else(width):
    from rich.console import Console

    now = time.time()
    status = {
        name: ServiceStatus(name, State.FAILED, None, now, 3, "", Result(["x"], 1, detail=text))
        for name, text in (("prepare", "it could not be launched: " + "x" * 300), ("web", "exit status 3"))
    }
    stream = io.StringIO()
    Console(file=stream, width=width).print(table(status))
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    (row,) = [line for line in lines if "prepare" in line]
    assert row.split()[:2] == ["prepare", "failed"]
    assert row.rstrip().endswith("…")
    assert any(line.split()[-4:] == ["3", "exit", "status", "3"] for line in lines)
