"""From a teacher's name to a folder: the embedded one, paths, and a hub that may not answer."""

import os
import subprocess
import sys

import pytest

from dreamkit.diffusion import hub
from dreamkit.diffusion.hub import pick_variant, teacher_folder, wanted_files
from dreamkit.errors import TeacherError

# Names ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["", "no-such-teacher", "./no/such/folder", "/no/such/folder", "a/b/c", "x" * 5000, "a\0b"]
)
def test_names_of_nothing_list_what_a_teacher_can_be(name):
    with pytest.raises(TeacherError) as caught:
        teacher_folder(name)
    for kind in ("toyworld", "diffusers layout", "OWNER/NAME"):
        assert kind in str(caught.value)


def test_a_file_is_not_a_teacher(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(TeacherError, match="is a file"):
        teacher_folder(str(tmp_path / "model.safetensors"))


def test_home_folders_are_expanded(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert teacher_folder("~/models") == tmp_path / "models"


def test_a_missing_embedded_teacher_is_explained(tmp_path, monkeypatch):
    monkeypatch.setattr(hub.importlib.resources, "files", lambda _: tmp_path)
    with pytest.raises(TeacherError, match="dreamkit teachers train image"):
        teacher_folder("toyworld")


# The hub --------------------------------------------------------------------------------------------------------------


def test_an_unreachable_hub_fails_fast_with_a_way_out(tmp_path):
    """A real attempt against a closed port, in a process of its own: the hub's client reads its settings at import."""
    code = (
        "from dreamkit.diffusion.hub import teacher_folder\n"
        "from dreamkit.errors import TeacherError\n"
        "try: teacher_folder('some-owner/some-model')\n"
        "except TeacherError as error: print(error)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert "hub can't be reached" in result.stdout
    assert "pass its path: --teacher PATH" in result.stdout


@pytest.fixture
def fake_hub(monkeypatch):
    """A hub that answers as told, and remembers what was asked of it."""
    import huggingface_hub

    asked = {}

    class Entry:
        def __init__(self, name):
            self.rfilename = name

    class Info:
        siblings = ()

    def answer(files=(), error=None, folder=None):
        def model_info(self, repo_id, timeout=None, **_):
            asked["timeout"] = timeout
            if error is not None:
                raise error
            info = Info()
            info.siblings = [Entry(file) for file in files]
            return info

        def snapshot_download(repo_id, allow_patterns=None, local_files_only=False):
            asked.update(patterns=allow_patterns, local=local_files_only)
            if folder is None:
                raise FileNotFoundError("not cached")
            return str(folder)

        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        return asked

    return answer


def hub_error(kind):
    """The hub's own exception without the HTTP response it is usually made from."""
    import huggingface_hub.errors

    return getattr(huggingface_hub.errors, kind).__new__(getattr(huggingface_hub.errors, kind), "no")


def test_only_the_parts_of_a_pipeline_are_downloaded(fake_hub, tmp_path):
    files = [
        "model_index.json",
        "README.md",
        "big-single-file.safetensors",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.bin",
        "safety_checker/model.safetensors",
    ]
    asked = fake_hub(files, folder=tmp_path)
    assert teacher_folder("owner/model") == tmp_path
    assert asked["patterns"] == [
        "model_index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ]
    assert asked["timeout"] <= 10
    teacher_folder("owner/model", prefer_half=True)
    assert asked["patterns"][-1] == "unet/diffusion_pytorch_model.fp16.safetensors"


def test_without_a_network_the_hubs_cache_is_used(fake_hub, tmp_path):
    asked = fake_hub(error=ConnectionError("no route"), folder=tmp_path)
    assert teacher_folder("owner/model") == tmp_path
    assert asked["local"]


@pytest.mark.parametrize(
    ("error", "match"),
    [
        (ConnectionError("no route to host"), "can't be reached .no route to host.* pass its path"),
        (TimeoutError(), "can't be reached .TimeoutError"),
        ("RepositoryNotFoundError", "no public model of that name"),
        ("GatedRepoError", "hf auth login"),
    ],
)
def test_hub_failures_are_explained(error, match, fake_hub):
    fake_hub(error=hub_error(error) if isinstance(error, str) else error)
    with pytest.raises(TeacherError, match=match):
        teacher_folder("owner/model")


def test_a_repository_of_another_kind_is_explained(fake_hub, tmp_path):
    fake_hub(["model.ckpt", "README.md"], folder=tmp_path)
    with pytest.raises(TeacherError, match=r"no model_index\.json"):
        teacher_folder("owner/model")


def test_weights_are_chosen_by_variant():
    both = ["config.json", "model.safetensors", "model.fp16.safetensors"]
    assert pick_variant(both) is None
    assert pick_variant(both, prefer_half=True) == "fp16"
    assert pick_variant(["model.fp16.safetensors"]) == "fp16"
    assert pick_variant(["model-00001-of-00002.safetensors", "model.fp16-00001-of-00002.safetensors"]) is None
    assert pick_variant(["diffusion_pytorch_model.non_ema.safetensors"]) == "non_ema"
    with pytest.raises(FileNotFoundError):
        pick_variant(["model.bin", "config.json"])
    shards = ["unet/model.fp16-00001-of-00002.safetensors", "unet/model.safetensors.index.json", "vae/deep/x.json"]
    assert wanted_files(shards) == ["model_index.json", *shards[:2]]
