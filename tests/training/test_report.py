"""The report: everything is in it, nothing in it is taken for HTML, and it needs nothing else."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from compare_jobs import fake_job

from dreamkit.training.compare import Comparison, compare, rebuild
from dreamkit.training.compare.plan import CompareOptions
from dreamkit.training.report.notes import notes_html
from dreamkit.training.report.plots import bars, scatter

VOID = {"meta", "img", "br", "wbr", "link", "input", "use", "path"}


class Balance(HTMLParser):
    """Checks that what is opened is closed, and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.counts: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    prompts, notes = tmp_path / "p.txt", tmp_path / "n.txt"
    prompts.write_text("a blue duck <script>alert(1)</script>\na red mug & $x_1$\n")
    notes.write_text("# Why\n\nBecause <img src=x onerror=alert(2)> of `this`.\n\n- one\n- **two**\n")
    options = CompareOptions(
        "sds,sds:guidance=7.5;timesteps.level=[0,0.9,0.1,1]",
        str(prompts),
        "text,camera",
        seeds=2,
        out=str(tmp_path / "out"),
        thumbnails="2x16",
        notes=str(notes),
    )
    return compare(options, job=fake_job)


def test_one_picture_a_run_and_all_tags_closed(comparison: Comparison) -> None:
    balance = Balance()
    balance.feed(comparison.report.read_text())
    assert balance.open == []
    assert balance.counts["img"] == len(comparison.rows) == 16
    assert balance.counts["svg"] == 6
    assert balance.counts["script"] == 1


def test_user_text_is_escaped(comparison: Comparison) -> None:
    page = comparison.report.read_text()
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "a blue duck &lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "a red mug &amp; $x_1$" in page
    assert "Because &lt;img src=x onerror=alert(2)&gt; of <code>this</code>." in page


def test_nothing_is_fetched(comparison: Comparison) -> None:
    page = re.sub(r'xmlns(:xlink)?="[^"]*"', "", comparison.report.read_text())
    assert not re.search(r"https?://|@import|<link", page)
    assert set(re.findall(r'src="([a-z/:]+);', page)) == {"data:image/webp"}


def test_what_it_tells(comparison: Comparison) -> None:
    page = comparison.report.read_text()
    assert str(comparison.machine["date"]) in page
    assert f"commit {comparison.machine['commit'] or 'unknown'}" in page
    assert "2 objectives · 2 prompts · 2 seeds" in page
    assert '<span class="warn">2 fronts</span>' in page
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport"' in page
    assert "<li class=own><code>guidance = 7.5</code></li>" in page
    assert "<code>timesteps.level = 0.9 to 0.1</code>" in page
    assert "What all runs have in common" in page


def test_notes_stay_when_it_is_rebuilt(comparison: Comparison, tmp_path: Path) -> None:
    assert "<h3>Why</h3>" in rebuild(str(comparison.folder)).report.read_text()
    (tmp_path / "other.txt").write_text("Other.")
    page = rebuild(str(comparison.folder), str(tmp_path / "other.txt")).report.read_text()
    assert "<p>Other.</p>" in page
    assert "<h3>Why</h3>" not in page


def test_pictures_that_are_gone(comparison: Comparison) -> None:
    for path in (comparison.folder / "views").iterdir():
        path.unlink()
    result = rebuild(str(comparison.folder))
    assert "no picture" in result.report.read_text()
    assert result.summary[0]["diversity"] is None


def test_notes() -> None:
    assert notes_html("") == ""
    assert notes_html("a\nb\n\n## c\nd\n\n- e\n* f") == (
        "<p>a b</p>\n<h3>c</h3>\n<p>d</p>\n<ul><li>e</li><li>f</li></ul>"
    )


def test_plots_of_nothing_are_left_out() -> None:
    empty = [{"objective": "sds", "mode": "text", "r_precision": None, "seconds": 1.0, "janus": None}]
    assert scatter([], "seconds", "s") == scatter(empty, "seconds", "s") == ""
    assert bars(empty, "janus", "Janus") == bars([], "janus", "Janus") == ""


def test_plots_follow_the_page_s_colour_and_never_change() -> None:
    rows = [
        {"objective": f"o{index} <&", "mode": mode, "r_precision": 0.5, "seconds": 10.0**index, "janus": 0.0}
        for index in range(3)
        for mode in ("text", "camera")
    ]
    for draw in (lambda: scatter(rows, "seconds", "seconds"), lambda: bars(rows, "janus", "Janus")):
        svg = draw()
        assert svg == draw()
        assert "currentColor" in svg
        assert "#010203" not in svg
        assert "o1 &lt;&amp;" in svg
