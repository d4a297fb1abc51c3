"""Bar charts as SVG, written by hand: for light and dark pages, with the machine and the date in it."""

import os
import platform
import time
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, LABEL, BAR, GAP = 800, 250, 17, 28

STYLE = """
.bars{--paper:#fff;--ink:#1f2328;--dim:#59636e;--ours:#1d6fd1;--limit:#59636e;--peer:#b3bcc6;
font:12.5px system-ui,sans-serif}
@media(prefers-color-scheme:dark){.bars{--paper:#0d1117;--ink:#e6edf3;--dim:#9198a1;--ours:#4493f8;--limit:#9198a1;
--peer:#4b5561}}
.bars .paper{fill:var(--paper)}.bars text{fill:var(--ink)}.bars .title{font-size:15px;font-weight:600}
.bars .head{font-size:13px;font-weight:600}.bars .dim{fill:var(--dim)}.bars .ours{fill:var(--ours)}
.bars .limit{fill:var(--limit)}.bars .peer{fill:var(--peer)}
"""


class Bar(NamedTuple):
    """One bar: `kind` is ours, limit (what is possible) or peer."""

    name: str
    value: float
    text: str
    kind: str


class Group(NamedTuple):
    """Bars that are compared with each other, longest over the whole width."""

    title: str
    bars: Sequence[Bar]


def bars(title: str, groups: Sequence[Group]) -> str:
    """Return the chart."""
    lines = [
        f'<text x="16" y="26" class="title">{escape(title)}</text>',
        f'<text x="16" y="44" class="dim">{escape(machine())}</text>',
    ]
    y = 58
    for group in groups:
        if group.title:
            y += 18
            lines.append(f'<text x="16" y="{y}" class="head">{escape(group.title)}</text>')
            y += 8
        most = max(bar.value for bar in group.bars)
        for bar in group.bars:
            length = max(2.0, (WIDTH - LABEL - 150) * bar.value / most)
            lines += [
                f'<text x="{LABEL - 8}" y="{y + BAR - 5}" text-anchor="end">{escape(bar.name)}</text>',
                f'<rect x="{LABEL}" y="{y}" width="{length:.1f}" height="{BAR - 3}" rx="3" class="{bar.kind}"/>',
                f'<text x="{LABEL + length + 6:.1f}" y="{y + BAR - 5}" class="dim">{escape(bar.text)}</text>',
            ]
            y += BAR
        y += GAP - 18 if group.title else 0
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="bars" viewBox="0 0 {WIDTH} {y + 14}" role="img">',
            f"<title>{escape(title)}</title>",
            f"<style>{STYLE}</style>",
            '<rect class="paper" width="100%" height="100%" rx="8"/>',
            *lines,
            "</svg>",
            "",
        )
    )


def machine() -> str:
    """Say what was measured on, and when."""
    release = platform.release().partition("-")[0]
    return (
        f"Linux {release}, {platform.machine()}, {os.cpu_count()} processors, shared;"
        f" Python {platform.python_version()}; {time.strftime('%Y-%m-%d')}"
    )
