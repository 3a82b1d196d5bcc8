"""The report of video students: whole, self-contained, and nothing in it is taken for HTML."""

import re
from pathlib import Path

import pytest
import torch
from test_report import Balance
from video_cells import fake_job, write_run, write_student

from dreamkit.training.compare_video import CompareVideoOptions, VideoComparison, compare_videos, players, rebuild
from dreamkit.training.compare_video.plots import lines, mean_curve
from dreamkit.training.compare_video.work import clip_file


@pytest.fixture
def comparison(tmp_path: Path) -> VideoComparison:
    write_student(tmp_path / "t")
    common = {"history": "self", "batch": 2, "critic_steps": 5, "teacher": str(tmp_path / "t")}
    first = write_run(tmp_path / "one", {"objective": "re-dmd", **common}, [1.0, 2.0])
    second = write_run(tmp_path / "two", {"objective": "dmd", **common}, [1.0, 2.0])
    prompts = tmp_path / "p.txt"
    prompts.write_text("a red mug spinning\na blue <script>alert(1)</script> duck spinning\na pink cube spinning\n")
    students = (f"a={first}", f"<b>&={second}")
    options = CompareVideoOptions(
        students, str(tmp_path / "t"), str(prompts), 300, seeds=2, shown=2, out=str(tmp_path / "out")
    )
    return compare_videos(options, job=fake_job)


def test_all_tags_are_closed_and_nothing_is_fetched(comparison: VideoComparison) -> None:
    page = comparison.report.read_text()
    balance = Balance()
    balance.feed(page)
    assert balance.open == []
    assert balance.counts["video"] == 2 * (1 + 2 * 2)  # two prompts; a teacher's clip, two of each student
    assert balance.counts["svg"] == 2
    assert balance.counts["script"] == 1
    bare = re.sub(r'xmlns(:xlink)?="[^"]*"', "", page)
    assert not re.search(r"https?:|//[a-z]+\.|@import|<link|<iframe", bare)
    assert set(re.findall(r'src="([^;"]+)', page)) == {"data:video/mp4"}


def test_user_text_is_escaped(comparison: VideoComparison) -> None:
    page = comparison.report.read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "<b>" not in page
    assert "&lt;b&gt;&amp;" in page


def test_what_it_tells(comparison: VideoComparison) -> None:
    page = comparison.report.read_text()
    assert "2 students · 3 prompts · 2 seeds · 300 frames" in page
    for title in ("Quality", "Motion", "Speed", "Against the teacher", "Claims", "Over the frames", "Clips"):
        assert f">{title}</h" in page
    assert "Rewarded DMD moves more than DMD." in page
    assert "<strong>holds</strong>" in page  # a's numbers are better
    assert "a against &lt;b&gt;&amp;: motion, of prompts that ask for motion," in page
    assert page.count("<strong>not measured</strong>") == 3
    assert "\N{PLUS-MINUS SIGN}" in page
    assert 'class="best"' in page
    assert "re-dmd" in page
    assert ">0.0<" in page  # 24 clips are 0.0 thousand


def test_large_clips_stay_beside_the_page(comparison: VideoComparison, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(players, "LARGEST", 2)
    page = rebuild(str(comparison.folder)).report.read_text()
    sources = set(re.findall(r'<video src="([^"]+)"', page))
    assert all((comparison.folder / source).is_file() for source in sources)
    for path in (comparison.folder / "clips").iterdir():
        path.unlink()
    assert "<video" not in rebuild(str(comparison.folder)).report.read_text()


def test_a_comparison_without_anything(tmp_path: Path) -> None:
    options = CompareVideoOptions(
        (f"a={write_student(tmp_path / 'a')}",), prompts="1", frames=5, out=str(tmp_path / "o")
    )
    compare_videos(options, job=fake_job)
    for path in (tmp_path / "o" / "rows").iterdir():
        path.unlink()
    balance = Balance()
    balance.feed(rebuild(str(tmp_path / "o")).report.read_text())
    assert balance.open == []


def test_curves() -> None:
    made = [{"curve": [{"start": 0, "end": 100, "prompt": value}, {"start": 100, "end": 200}]} for value in (0.5, 1.0)]
    assert mean_curve(made, "prompt") == [(50.0, 0.75)]
    assert lines({"a": []}, {"a": "#000000"}, "prompt") == ""
    svg = lines({"a <": [(50.0, 0.75)]}, {"a <": "#123456"}, "prompt", 0.5, "teacher")
    assert svg == lines({"a <": [(50.0, 0.75)]}, {"a <": "#123456"}, "prompt", 0.5, "teacher")
    assert "currentColor" in svg


def test_clips_are_enlarged_by_whole_pixels(tmp_path: Path) -> None:
    import imageio.v3

    from dreamkit.training.compare_video.plan import make_plan
    from dreamkit.training.compare_video.work import write_clip

    options = CompareVideoOptions(("a=tiny-random",), prompts="1", out=str(tmp_path))
    task = make_plan(options).tasks[0]
    red = torch.zeros(16, 16, 3, dtype=torch.uint8)
    red[..., 0] = 200
    write_clip(task, 12, "first", [red] * 3)
    frames = imageio.v3.imread(clip_file(tmp_path, task.key, "first"))
    assert frames.shape == (3, 192, 192, 3)
    assert abs(int(frames[0, 0, 0, 0]) - 200) < 6
