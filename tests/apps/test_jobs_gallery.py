import os
from pathlib import Path

import pytest
from dreamkit_apps.jobs.errors import JobStateError, NotFoundError
from dreamkit_apps.jobs.gallery import RunFolders
from hypothesis import given
from hypothesis import strategies as st

from dreamkit.errors import ConfigError
from dreamkit.runs import Run


def make_run(root: Path, prompt: str = "a red mug", slug: str = "a-red-mug") -> Path:
    path = Run.create(root, slug, "sds", {"prompt": prompt, "scene": "gaussians", "preset": "draft"}).path
    (path / "exports" / "scene.ply").write_bytes(b"ply")
    (path / "renders" / "contact_sheet.png").write_bytes(b"png")
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "outputs")


@pytest.fixture
def runs(tmp_path: Path) -> RunFolders:
    return RunFolders(tmp_path / "outputs")


def id_of(run: Path) -> str:
    return "~".join(run.parts[-3:])


def test_runs_are_listed_the_newest_first(runs: RunFolders, run: Path) -> None:
    make_run(runs.root, "eine grüne Straße", "street")
    (runs.root / ".jobs").mkdir()
    (runs.root / "samples").mkdir()
    found, total = runs.find()
    assert total == 2
    assert {summary.prompt for summary in found} == {"a red mug", "eine grüne Straße"}
    first = runs.summary(id_of(run))
    assert (first.objective, first.scene, first.preset, first.finished) == ("sds", "gaussians", "draft", True)
    assert first.preview == "renders/contact_sheet.png"
    assert first.created.startswith("20")
    assert [summary.prompt for summary in runs.find("STRASSE")[0]] == ["eine grüne Straße"]
    assert runs.find("mug sds")[1] == 1
    assert [len(runs.find(limit=1, offset=offset)[0]) for offset in (0, 1, 2)] == [1, 1, 0]
    with pytest.raises(ConfigError):
        runs.find(limit=1000)


def test_ids_and_folders_name_one_another(runs: RunFolders, run: Path, tmp_path: Path) -> None:
    assert runs.run_id(run) == id_of(run)
    assert runs.folder(id_of(run)) == run.resolve()
    for other in (tmp_path, run.parent, run / "exports", Path("/etc"), tmp_path / "outputs" / "a" / "b" / "c"):
        assert runs.run_id(other) is None


def test_an_unfinished_run_says_so(runs: RunFolders) -> None:
    path = Run.create(runs.root, "a-mug", "sds", {"prompt": "a mug"}).path
    assert not runs.summary(id_of(path)).finished
    assert runs.summary(id_of(path)).preview is None


@pytest.mark.parametrize(
    "content", ["", "- 1", "{", "config: 3", "config: {prompt: [1]}", "a: &a [*a]", "\0", "[" * 3000]
)
def test_a_broken_configuration_hides_no_run(runs: RunFolders, run: Path, content: str) -> None:
    (run / "config.yaml").write_text(content)
    found, total = runs.find()
    assert total == 1
    assert isinstance(found[0].prompt, str)


def test_a_changed_configuration_is_read_again(runs: RunFolders, run: Path) -> None:
    assert runs.find()[0][0].prompt == "a red mug"
    (run / "config.yaml").write_text("config: {prompt: a blue mug}")
    os.utime(run / "config.yaml", ns=(1, 1))
    assert runs.find()[0][0].prompt == "a blue mug"


def test_files_are_listed_without_hidden_ones_and_links(runs: RunFolders, run: Path) -> None:
    (run / ".lock").touch()
    (run / ".hidden").mkdir()
    (run / ".hidden" / "x").touch()
    (run / "exports" / "link.ply").symlink_to("/etc/passwd")
    (run / "renders" / "out").symlink_to("/etc")
    os.mkfifo(run / "pipe")
    (run / "renders" / "grün & “schön”.png").write_bytes(b"12345")
    files = {file.name: file.size for file in runs.files(id_of(run))}
    assert files["renders/grün & “schön”.png"] == 5
    assert set(files) == {
        *("config.yaml", "metrics.jsonl", "run.log", "exports/scene.ply"),
        *("renders/contact_sheet.png", "renders/grün & “schön”.png"),
    }
    for name in files:
        assert runs.file(id_of(run), name).is_file()


PROBES = [
    *("", ".", "..", "/", "//", "../config.yaml", "exports/../config.yaml", "exports/..", "./config.yaml"),
    *("/etc/passwd", "//etc/passwd", "exports//scene.ply", "exports/", "exports", "exports/scene.ply/"),
    *("exports/scene.ply/x", "..\\config.yaml", "exports\\scene.ply", "config.yaml\0", "config.yaml\0.png", "\0"),
    *(".lock", ".hidden/x", "exports/link.ply", "out/passwd", "inside/scene.ply", "pipe", "%2e%2e/config.yaml"),
    *("%2e%2e%2fconfig.yaml", "..%2f..%2fetc/passwd", "\uff0e\uff0e/config.yaml", "\u202econfig.yaml", "config.yaml\n"),
    *("\ud800", "~", "~root", "C:\\x", "file:///etc/passwd", "a" * 5000, "a/" * 500 + "a", "CONFIG.yaml\u200b"),
]


@pytest.mark.parametrize("name", PROBES)
def test_no_name_leads_out_of_a_run(runs: RunFolders, run: Path, name: str) -> None:
    (run / ".lock").touch()
    (run / ".hidden").mkdir()
    (run / ".hidden" / "x").touch()
    (run / "exports" / "link.ply").symlink_to("/etc/passwd")
    (run / "out").symlink_to("/etc")
    (run / "inside").symlink_to(run / "exports")
    os.mkfifo(run / "pipe")
    with pytest.raises(NotFoundError):
        runs.file(id_of(run), name)


@pytest.mark.parametrize(
    "run_id",
    ["", "~", "~~", "..~..~..", ".~.~.", "a~b", "a-red-mug", "a-red-mug/sds/x", "/etc~a~b", "a\0~b~c", "\ud800~b~c",
     ".jobs~logs~x", "link~sds~now", "a-red-mug~sds~link", "a-red-mug~sds~" + "x" * 300, "a-red-mug~sds~..",
     "%2e%2e~a~b"],
)  # fmt: skip
def test_no_id_leads_out_of_the_runs(runs: RunFolders, run: Path, tmp_path: Path, run_id: str) -> None:
    outside = make_run(tmp_path / "outside")
    (run.parent / "link").symlink_to(outside)
    (runs.root / "link").symlink_to(outside.parents[1])
    (outside.parents[1] / "sds" / "now").mkdir()
    (outside.parents[1] / "sds" / "now" / "config.yaml").touch()
    for look in (runs.folder, runs.files, runs.summary, runs.delete):
        with pytest.raises(NotFoundError):
            look(run_id)
    assert (outside / "config.yaml").exists()
    assert runs.find()[1] == 1


PIECES = st.sampled_from(
    ["..", ".", "/", "\\", "%2e", "%2f", "\0", "~", "exports", "scene.ply", "config.yaml", "a", " "]
)


@given(st.lists(st.one_of(PIECES, st.text(max_size=4)), max_size=8).map("".join))
def test_what_is_served_is_always_a_plain_file_inside(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    root = tmp_path_factory.getbasetemp() / "served"
    run = next(iter(root.glob("*/*/*")), None) or make_run(root)
    runs = RunFolders(root)
    for look in (lambda: runs.file(id_of(run), name), lambda: runs.folder(name)):
        try:
            path = look()
        except NotFoundError:
            continue
        assert path.resolve().is_relative_to(root.resolve())
        assert path.resolve() == path
        assert not any(part.startswith(".") for part in path.relative_to(root.resolve()).parts)


def test_a_deleted_run_is_gone_and_its_neighbours_stay(runs: RunFolders, run: Path, tmp_path: Path) -> None:
    other = make_run(runs.root)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    (run / "exports" / "link").symlink_to(tmp_path / "precious")
    runs.delete(id_of(run))
    assert not run.exists()
    assert other.exists()
    assert (tmp_path / "precious" / "file").exists()
    runs.delete(id_of(other))
    assert list(runs.root.iterdir()) == []
    with pytest.raises(NotFoundError):
        runs.delete(id_of(run))


def test_only_a_run_is_deleted(runs: RunFolders) -> None:
    folder = runs.root / "my" / "own" / "things"
    folder.mkdir(parents=True)
    with pytest.raises(NotFoundError):
        runs.delete("my~own~things")
    assert folder.exists()


def test_a_run_that_is_written_is_not_deleted(runs: RunFolders, run: Path) -> None:
    with Run(run, {}).lock(), pytest.raises(JobStateError, match="in use by another process"):
        runs.delete(id_of(run))
    assert (run / "config.yaml").exists()


def test_a_comparison_is_a_run_with_a_report(runs: RunFolders) -> None:
    folder = runs.new_folder("a-red-mug", "compare", "20260101T000000Z-abc")
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text('{"prompts": ["a red mug"]}')
    (folder / "report.html").touch()
    run_id = id_of(folder)
    assert runs.run_id(folder) == run_id
    summary = runs.summary(run_id)
    assert (summary.prompt, summary.objective, summary.finished) == ("a red mug", "compare", True)
    assert runs.is_report(run_id, "report.html")
    assert not runs.is_report(run_id, "other.html")


def test_a_page_in_an_assets_run_is_no_report(runs: RunFolders, run: Path) -> None:
    (run / "report.html").touch()
    assert not runs.is_report(id_of(run), "report.html")
