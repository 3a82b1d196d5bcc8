import json
from pathlib import Path
from typing import Any

import pytest
from dreamkit_apps.jobs.store import QUEUE_FILE, JobStore

from dreamkit.cli.main import main
from dreamkit.runs import Run


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "outputs"


def said(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def submit(out: Path, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["jobs", "submit", "--out", str(out), "--json", *words]) == 0
    return said(capsys)


def test_a_job_is_submitted_listed_cancelled_and_retried(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = submit(out, capsys, "--steps", "9", "--option", "guidance=3", "--priority", "4", "--", "--a red mug")
    assert (job["prompt"], job["state"], job["priority"]) == ("--a red mug", "queued", 4)
    assert (job["settings"]["steps"], job["settings"]["options"]) == (9, ["guidance=3"])
    assert "worker" not in job
    assert JobStore(out / QUEUE_FILE).get(job["id"]).prompt == "--a red mug"
    where = ["--out", str(out), "--json"]
    assert main(["jobs", "list", *where]) == 0
    assert said(capsys) == {"jobs": [job], "total": 1}
    assert main(["jobs", "cancel", *where, job["id"][:8]]) == 0
    assert said(capsys)["state"] == "cancelled"
    assert main(["jobs", "list", *where, "--state", "queued,running"]) == 0
    assert said(capsys)["total"] == 0
    assert main(["jobs", "retry", *where, "--fresh", job["id"]]) == 0
    assert said(capsys)["state"] == "queued"
    assert main(["jobs", "show", *where, job["id"][:8]]) == 0
    assert said(capsys)["id"] == job["id"]


def test_people_get_a_table_and_a_command(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["jobs", "list", "--out", str(out)]) == 0
    assert "dreamkit jobs submit" in capsys.readouterr().out
    job = submit(out, capsys, "a [bold]red[/bold] mug")
    assert main(["jobs", "list", "--out", str(out)]) == 0
    table = capsys.readouterr().out
    assert job["id"][:8] in table
    assert "a [bold]red" in table
    assert main(["jobs", "show", "--out", str(out), job["id"]]) == 0
    assert "dreamkit generate -- 'a [bold]red[/bold] mug'" in capsys.readouterr().out


def test_edits_and_comparisons(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run.create(out, "a-red-mug", "sds", {"prompt": "a red mug"}).path
    run_id = "~".join(run.parts[-3:])
    for source in (str(run), run_id):
        edit = submit(out, capsys, "--source", source, "--region", "ball:0,0,0,1", "a blue mug")
        assert (edit["kind"], edit["settings"]["source"]) == ("edit", run_id)
    compare = submit(out, capsys, "--objectives", "sds, csd", "a mug")
    assert (compare["kind"], compare["settings"]["objectives"]) == ("compare", ["sds", "csd"])


def test_the_queue_may_lie_elsewhere(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    submit(out, capsys, "--queue", str(tmp_path / "mine"), "a mug")
    assert (tmp_path / "mine").exists()
    assert not out.exists()


def test_a_worker_ends_when_nothing_waits(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["jobs", "worker", "--out", str(out), "--until-empty"]) == 0
    assert JobStore(out / QUEUE_FILE).workers() == 0


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["list", "--state", "lost"], "--state 'lost'"),
        (["list", "--limit", "0"], "can't be listed"),
        (["show", "nothing"], "no job 'nothing'"),
        (["cancel", "00000000"], "no job '00000000'"),
        (["retry", "--", "-x"], "no job '-x'"),
        (["submit", ""], "The prompt is empty"),
        (["submit", "a mug", "--steps", "0"], "steps is 0"),
        (["submit", "a mug", "--priority", "101"], "--priority is 101"),
        (["submit", "a mug", "--objective", "magic"], "'magic'"),
        (["submit", "a mug", "--source", "/nowhere"], "no run"),
        (["submit", "a mug", "--objectives", "sds", "--guidance", "3"], "no setting 'guidance'"),
        (["worker", "--device", "tpu"], "--device 'tpu'"),
        (["worker", "--time-limit", "0"], "--time-limit"),
    ],
)
def test_mistakes_are_explained(out: Path, capsys: pytest.CaptureFixture[str], words: list[str], problem: str) -> None:
    assert main(["jobs", words[0], "--out", str(out), *words[1:]]) == 2
    assert problem in capsys.readouterr().err


def test_the_group_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["jobs", "--help"]) == 0
    out = capsys.readouterr().out
    for command in ("list", "show", "submit", "cancel", "retry", "worker"):
        assert f"jobs {command}" in out
