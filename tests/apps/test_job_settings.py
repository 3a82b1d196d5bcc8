import shlex
from pathlib import Path
from typing import Any

import pytest
from dreamkit_apps.jobs.commands import Commands, shown_command
from dreamkit_apps.jobs.errors import NotFoundError
from dreamkit_apps.jobs.gallery import RunFolders
from dreamkit_apps.jobs.job import Job
from dreamkit_apps.jobs.settings import (
    EMBEDDED,
    MODES,
    PRESETS,
    SCENES,
    CompareSettings,
    EditSettings,
    GenerateSettings,
    Rules,
    read_settings,
    stored_settings,
)
from dreamkit_apps.jobs.store import JobStore
from hypothesis import given
from hypothesis import strategies as st

from dreamkit.cli.compare import Compare
from dreamkit.cli.edit import Edit
from dreamkit.cli.generate import Generate
from dreamkit.cli.parsing import parse
from dreamkit.errors import ConfigError, DreamkitError, PromptError
from dreamkit.prompts import clean_prompt
from dreamkit.runs import Run

PROMPTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)


@pytest.fixture
def run(tmp_path: Path) -> str:
    """The id of a run."""
    run_id = RunFolders(tmp_path).run_id(Run.create(tmp_path, "a-red-mug", "sds", {"prompt": "a red mug"}).path)
    assert run_id is not None
    return run_id


@pytest.fixture
def rules(tmp_path: Path) -> Rules:
    return Rules(RunFolders(tmp_path), {"sd15": "/models/sd15"})


def job_of(settings: Any, run: str | None = None) -> Job:
    return Job(
        "0" * 32, settings.kind, "ada", 0, "queued", 0, 0, 0.0, None, None, run, settings.prompt, settings.plain()
    )


def test_everything_that_the_form_offers_reaches_the_command(tmp_path: Path, rules: Rules) -> None:
    asked: dict[str, Any] = {
        "prompt": "  a red\tmug ",
        "preset": "standard",
        "objective": "esd",
        "scene": "mesh",
        "teacher": "sd15",
        "negative": "-blurry",
        "guidance": 7,
        "steps": 9,
        "views": 2,
        "resolution": 32,
        "seed": 5,
        "options": ["lambda=0.3", "timesteps=uniform"],
    }
    settings = read_settings("generate", asked, rules)
    words = Commands(rules, "cpu", 10).main(job_of(settings), None, tmp_path)[3:]
    assert words[0] == "generate"
    assert parse(Generate, "generate", words[1:]) == Generate(
        prompt="a red mug",
        preset="standard",
        objective="esd",
        scene="mesh",
        teacher="/models/sd15",
        negative="-blurry",
        guidance=7.0,
        steps=9,
        views=2,
        resolution=32,
        seed=5,
        option=("preview_every=5", "checkpoint_every=10", "lambda=0.3", "timesteps=uniform"),
        out=str(tmp_path),
        device="cpu",
        json=True,
    )
    assert stored_settings("generate", settings.plain()) == settings


def test_stages_reach_the_command(rules: Rules) -> None:
    settings = read_settings("generate", {"prompt": "a mug", "stages": "nerf:sds,mesh:vsd:100"}, rules)
    assert parse(Generate, "generate", settings.words(rules)[1:]).stages == "nerf:sds,mesh:vsd:100"


def test_an_edit_reaches_the_command(tmp_path: Path, rules: Rules, run: str) -> None:
    asked = {"source": run, "prompt": "a blue mug", "source_prompt": "", "region": "ball:0,0,0,1", "shape_weight": 0}
    settings = read_settings("edit", asked, rules)
    words = Commands(rules).main(job_of(settings), None, tmp_path)[3:]
    command = parse(Edit, "edit", words[1:])
    assert command.source == str(rules.runs.folder(run))
    assert (command.prompt, command.source_prompt, command.region) == ("a blue mug", "", "ball:0,0,0,1")
    assert (command.shape_weight, command.objective, command.teacher) == (0.0, "dds", None)


def test_a_comparison_reaches_the_command(tmp_path: Path, rules: Rules) -> None:
    asked = {"prompt": "a 'red' mug", "objectives": ["sds", "csd", "sds"], "mode": "views", "seeds": 2, "steps": 4}
    settings = read_settings("compare", asked, rules)
    commands = Commands(rules)
    words = commands.main(job_of(settings), None, tmp_path)[3:]
    command = parse(Compare, "compare", words[1:])
    assert (command.objectives, command.modes, command.seeds, command.steps) == ("sds,csd", "views", 2, 4)
    assert Path(command.prompts).read_text() == "a 'red' mug\n"
    assert Path(command.out) == commands.run_folder(job_of(settings))
    assert Path(command.out).relative_to(tmp_path).parts[:2] == ("a-red-mug", "compare")


def test_a_run_that_began_is_resumed(tmp_path: Path, rules: Rules, run: str) -> None:
    folder = rules.runs.folder(run)
    words = Commands(rules).main(job_of(GenerateSettings(prompt="a mug")), folder, tmp_path)
    assert words[3:] == ["resume", "--json", "--", str(folder)]


@given(PROMPTS, PROMPTS)
def test_a_prompt_is_only_a_prompt(prompt: str, negative: str) -> None:
    rules = Rules(RunFolders("/nowhere"))
    try:
        cleaned, unwanted = clean_prompt(prompt), clean_prompt(negative, allow_empty=True)
    except PromptError:
        return
    settings = GenerateSettings(prompt=cleaned, negative=unwanted)
    command = parse(Generate, "generate", settings.words(rules)[1:])
    assert command == Generate(prompt=cleaned, negative=unwanted)
    shell = shlex.split(settings.as_command(rules))
    assert shell == ["dreamkit", *settings.words(rules)]


@pytest.mark.parametrize(
    ("kind", "content", "problem"),
    [
        ("generate", {}, "The prompt is missing"),
        ("generate", {"prompt": ""}, "The prompt is empty"),
        ("generate", {"prompt": "x" * 2001}, "2,001 characters"),
        ("generate", {"prompt": "a \x00 mug"}, r"control character U\+0000"),
        ("generate", {"prompt": "a \u202e mug"}, r"control character U\+202E"),
        ("generate", {"prompt": "a \ud800 mug"}, r"control character U\+D800"),
        ("generate", {"prompt": "a mug", "negative": "\x1b[2J"}, r"control character U\+001B"),
        ("generate", {"prompt": ["a mug"]}, "must be text"),
        ("generate", {"prompt": None}, "must be text"),
        ("generate", {"prompt": "a mug", "step": 3}, "no setting 'step'"),
        ("generate", {"prompt": "a mug", "out": "/etc"}, "no setting 'out'"),
        ("generate", {"prompt": "a mug", "device": "cuda"}, "no setting 'device'"),
        ("generate", {"prompt": "a mug", "pictures": "/etc"}, "no setting 'pictures'"),
        ("generate", {"prompt": "a mug", "kind": "edit"}, "no setting 'kind'"),
        ("generate", {"prompt": "a mug", "steps": 0}, "from 1 to 20000"),
        ("generate", {"prompt": "a mug", "steps": 10**9}, "from 1 to 20000"),
        ("generate", {"prompt": "a mug", "steps": True}, "must be a whole number"),
        ("generate", {"prompt": "a mug", "steps": 2.5}, "must be a whole number"),
        ("generate", {"prompt": "a mug", "steps": "3"}, "must be a whole number"),
        ("generate", {"prompt": "a mug", "views": 65}, "from 1 to 64"),
        ("generate", {"prompt": "a mug", "resolution": 4096}, "from 16 to 512"),
        ("generate", {"prompt": "a mug", "seed": -1}, "seed is -1"),
        ("generate", {"prompt": "a mug", "seed": 2**63}, "seed is"),
        ("generate", {"prompt": "a mug", "guidance": float("nan")}, "guidance"),
        ("generate", {"prompt": "a mug", "guidance": float("inf")}, "guidance"),
        ("generate", {"prompt": "a mug", "guidance": 10**400}, "must be a number"),
        ("generate", {"prompt": "a mug", "guidance": -1}, "guidance"),
        ("generate", {"prompt": "a mug", "preset": "best"}, "preset 'best'"),
        ("generate", {"prompt": "a mug", "objective": "magic"}, "objective 'magic'"),
        ("generate", {"prompt": "a mug", "scene": "voxels"}, "scene 'voxels'"),
        ("generate", {"prompt": "a mug", "stages": "mesh:sds,nerf:sds"}, "can't start from"),
        ("generate", {"prompt": "a mug", "stages": "nerf:sds:15000,mesh:sds:15000"}, "of all stages"),
        ("generate", {"prompt": "a mug", "teacher": "/etc"}, "teacher '/etc' is not known"),
        ("generate", {"prompt": "a mug", "teacher": "runwayml/stable-diffusion"}, "is not known"),
        ("generate", {"prompt": "a mug", "teacher": "/models/sd15"}, "is not known"),
        ("generate", {"prompt": "a mug", "options": "lambda=1"}, "must be a list of texts"),
        ("generate", {"prompt": "a mug", "options": [1]}, "must be a list of texts"),
        ("generate", {"prompt": "a mug", "options": ["reference=/etc/passwd"]}, "form NAME=VALUE"),
        ("generate", {"prompt": "a mug", "options": ["reference=x.png"]}, "no option 'reference'"),
        ("generate", {"prompt": "a mug", "options": ["anchors.pictures=x"]}, "no option 'anchors'"),
        ("generate", {"prompt": "a mug", "options": ["teacher=x"]}, "no option 'teacher'"),
        ("generate", {"prompt": "a mug", "options": ["particles=64"]}, "no option 'particles'"),
        ("generate", {"prompt": "a mug", "options": ["gaussians.count=100000000"]}, "no option 'gaussians'"),
        ("generate", {"prompt": "a mug", "options": ["guidance=&a [*a, *a]"]}, "form NAME=VALUE"),
        ("generate", {"prompt": "a mug", "options": ["guidance=!!python/object:os.system"]}, "form NAME=VALUE"),
        ("generate", {"prompt": "a mug", "options": ["guidance=1"] * 21}, "number of options"),
        ("generate", {"prompt": "a mug", "options": ["guidance=word"]}, "no number for a schedule"),
        ("edit", {"prompt": "a mug"}, "no run ''"),
        ("edit", {"prompt": "a mug", "source": "latest"}, "no run 'latest'"),
        ("edit", {"prompt": "a mug", "source": "/etc"}, "no run '/etc'"),
        ("edit", {"prompt": "a mug", "source": "..~..~etc"}, "no run"),
        ("edit", {"prompt": "a mug", "source": "a-red-mug~sds~x"}, "no run"),
        ("compare", {"prompt": "a mug"}, "number of objectives"),
        ("compare", {"prompt": "a mug", "objectives": ["sds"] * 17}, "number of objectives"),
        ("compare", {"prompt": "a mug", "objectives": ["sds:reference=x"]}, "is not known"),
        ("compare", {"prompt": "a mug", "objectives": ["sds"], "seeds": 9}, "seeds"),
        ("compare", {"prompt": "a mug", "objectives": ["sds"], "mode": "x"}, "mode 'x'"),
        ("compare", {"prompt": "# a mug", "objectives": ["sds"]}, "begins with #"),
        ("explode", {"prompt": "a mug"}, "kind of job 'explode'"),
    ],
)
def test_what_cannot_be_is_refused_with_a_reason(
    rules: Rules, kind: str, content: dict[str, Any], problem: str
) -> None:
    with pytest.raises(DreamkitError, match=problem) as refusal:
        read_settings(kind, content, rules)
    assert refusal.value.hint


@pytest.mark.parametrize("region", ["/etc/passwd@0,0", "picture.png@0,0", "box:1,2", "ball:0,0,0,-1", "ball:x"])
def test_an_edit_reads_no_picture_of_the_server(rules: Rules, run: str, region: str) -> None:
    with pytest.raises(ConfigError):
        read_settings("edit", {"source": run, "prompt": "a mug", "region": region}, rules)


def test_the_source_of_an_edit_must_be_no_link(tmp_path: Path, rules: Rules, run: str) -> None:
    outside = Run.create(tmp_path / "elsewhere", "secret", "sds", {"prompt": "x"}).path
    (tmp_path / "a-red-mug" / "sds" / "link").symlink_to(outside)
    with pytest.raises(NotFoundError):
        read_settings("edit", {"source": "a-red-mug~sds~link", "prompt": "a mug"}, rules)


def test_ones_own_command_line_may_name_any_teacher(tmp_path: Path) -> None:
    rules = Rules(RunFolders(tmp_path), any_teacher=True)
    assert read_settings("generate", {"prompt": "a", "teacher": str(tmp_path)}, rules).teacher == str(tmp_path)
    assert read_settings("generate", {"prompt": "a", "teacher": "org/model"}, rules).teacher == "org/model"


def test_a_copied_command_tells_no_path_of_the_server(tmp_path: Path, rules: Rules, run: str) -> None:
    own = read_settings("generate", {"prompt": "a 'red' mug", "teacher": "sd15"}, rules)
    assert shown_command(job_of(own), rules) == "dreamkit generate --teacher=sd15 -- 'a '\"'\"'red'\"'\"' mug'"
    edit = read_settings("edit", {"source": run, "prompt": "a blue mug"}, rules)
    path = f"{tmp_path.name}/{run.replace('~', '/')}"
    assert shown_command(job_of(edit), rules) == f"dreamkit edit -- {path} 'a blue mug'"
    compare = CompareSettings(prompt="a mug; ls", objectives=("sds",))
    assert shown_command(job_of(compare), rules).endswith("--prompts <(printf '%s\\n' 'a mug; ls')")


def test_choices_are_those_of_the_library() -> None:
    from dreamkit.training import presets, settings
    from dreamkit.training.compare.plan import MODES as KNOWN_MODES

    assert tuple(PRESETS) == presets.PRESETS
    assert tuple(SCENES) == settings.SCENES
    assert tuple(MODES) == tuple(KNOWN_MODES)
    assert settings.EMBEDDED == EMBEDDED


def test_the_whole_request_has_a_limit(tmp_path: Path, rules: Rules) -> None:
    options = [f"guidance={'1' * 150}"] * 500
    with pytest.raises(ConfigError, match="64 KiB"):
        read_settings("generate", {"prompt": "a", "options": options}, rules)


def test_settings_survive_the_queue(tmp_path: Path, rules: Rules, run: str) -> None:
    store = JobStore(tmp_path / "q")
    for settings in (
        GenerateSettings(prompt="a", options=("guidance=3",), steps=4),
        EditSettings(prompt="b", source=run, source_prompt=None),
        CompareSettings(prompt="c", objectives=("sds", "csd")),
    ):
        job = store.get(store.submit(settings).id)
        assert stored_settings(job.kind, job.settings) == settings
