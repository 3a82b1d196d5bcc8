"""Clips of a comparison side by side, inside the page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from dreamkit.training.compare_video.measures import STREAM, TEACHER
from dreamkit.training.compare_video.students import TEACHER_NAME
from dreamkit.training.compare_video.summary import Row
from dreamkit.training.compare_video.work import clip_file
from dreamkit.training.report.parts import data_uri, number_text

LARGEST = 1_000_000
"""Bytes of a clip that is put into the page; larger ones are shown from beside it."""
_TITLES = {
    "first": "the first 5 s",
    "last": "the last 5 s",
    "switch": "another prompt after 3 s",
    "loop": "an orbit there and back",
}
_CAPTIONS = {
    "first": ("prompt_first", "prompt"),
    "last": ("prompt_last", "prompt"),
    "switch": ("switch_3s", "after 3 s"),
    "loop": ("loop", "loop"),
}
"""Column and what it is called under a clip."""

STYLE = """
.half { color: var(--soft); font-size: .85em; }
video { display: block; width: 10rem; max-width: 40vw; border-radius: 8px; margin: 0 auto; background: var(--line); }
.together { font: inherit; font-size: .85rem; margin: 0 0 .6rem; padding: .25rem .8rem; border-radius: 999px;
  border: 1px solid var(--line); background: var(--card); color: var(--accent); cursor: pointer; }
.claim { border-left: 3px solid var(--soft); padding-left: 1rem; margin: 1.4rem 0; }
.claim h3 { margin: 0 0 .2rem; } .claim p { margin: .2rem 0; }
.claim.holds { border-color: var(--best); } .claim.holds strong { color: var(--best); }
.claim.fails { border-color: var(--warn); } .claim.fails strong { color: var(--warn); }
@media print { .together { display: none; } }
"""

SCRIPT = """
document.querySelectorAll("button.together").forEach((button) => {
  button.addEventListener("click", () => {
    const videos = button.parentNode.querySelectorAll("video");
    const playing = [...videos].some((video) => !video.paused);
    videos.forEach((video) => { if (playing) { video.pause(); } else { video.currentTime = 0; video.play(); } });
  });
});
"""


def players(folder: Path, rows: Sequence[Row], students: Sequence[str]) -> str:
    """A block a prompt: a row a kind of clip, a column the teacher and each student.

    Args:
        folder: of the comparison.
        rows: all.
        students: in their order.

    Returns:
        A section; an empty text without clips.
    """
    found = {(row["student"], row["prompt"]): row for row in rows if row["seed"] == 0 and row["error"] is None}
    shown = [row for row in found.values() if row["kind"] in (STREAM, TEACHER) and _clips(folder, row)]
    columns = [name for name in (TEACHER_NAME, *students) if any(row["student"] == name for row in shown)]
    blocks = []
    for prompt in dict.fromkeys(row["prompt"] for row in shown):
        own = {name: found.get((name, prompt)) for name in columns}
        lines = []
        for name, title in _TITLES.items():
            cells = [_player(folder, own[column], name) for column in columns]
            if any(cells):
                inner = "".join(f"<td>{cell}</td>" for cell in cells)
                lines.append(f'<tr><th scope="row">{escape(title)}</th>{inner}</tr>')
        heads = "".join(f'<th scope="col"><span>{escape(name)}</span></th>' for name in columns)
        blocks.append(
            f'<div>\n<h3>{escape(prompt)}</h3>\n<button type="button" class="together">Play all, or stop</button>\n'
            f'<div class="scroll fit"><table class="grid">\n<thead><tr><th></th>{heads}</tr></thead>\n'
            f"<tbody>\n{chr(10).join(lines)}\n</tbody></table></div>\n</div>"
        )
    return f"<section>\n<h2>Clips</h2>\n{chr(10).join(blocks)}\n</section>" if blocks else ""


def _clips(folder: Path, row: Row) -> bool:
    return any(clip_file(folder, row["key"], name).is_file() for name in _TITLES)


def _player(folder: Path, row: Row | None, name: str) -> str:
    """One clip with its score; an empty text where there is none."""
    if row is None or not (path := clip_file(folder, row["key"], name)).is_file():
        return ""
    small = path.stat().st_size <= LARGEST
    source = data_uri("video/mp4", path.read_bytes()) if small else escape(path.relative_to(folder).as_posix())
    label = escape(f"{row['student']}, {row['prompt']}, {_TITLES[name]}")
    column, called = _CAPTIONS[name]
    return (
        f'<video src="{source}" aria-label="{label}" title="{label}" controls loop muted playsinline '
        f'preload="metadata"></video><div class="cap">{escape(called)} {number_text(row[column], 2)}</div>'
    )
