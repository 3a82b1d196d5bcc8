"""Loading teachers: every format, every way a folder can be wrong, and nothing but TeacherError for the user."""

import contextlib
import json
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from dreamkit.diffusion import hub
from dreamkit.diffusion.loading import load_teacher, resolve_device
from dreamkit.errors import TeacherError


@pytest.fixture
def copy_of(checkpoint, tmp_path):
    def copy(name):
        return shutil.copytree(checkpoint(name), tmp_path / name)

    return copy


def edit_json(path, **changes):
    content = json.loads(path.read_text())
    content.update(changes)
    path.write_text(json.dumps({key: value for key, value in content.items() if value != "REMOVE"}))


def edit_weights(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def load(folder, **options):
    return load_teacher(str(folder), device="cpu", **options)


# What loads -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "prediction", "shape", "pixels", "camera"),
    [
        ("sd15", "eps", (4, 8, 8), 16, False),
        ("sd21", "v", (4, 8, 8), 16, False),
        ("sdxl", "eps", (4, 8, 8), 16, False),
        ("deepfloyd", "eps", (3, 8, 8), 8, False),
        ("toyworld", "v", (3, 16, 16), 16, True),
    ],
)
def test_formats(name, prediction, shape, pixels, camera, checkpoint, capfd):
    folder = checkpoint(name)
    capfd.readouterr()
    teacher = load(folder)
    assert teacher.prediction_type == prediction
    assert teacher.sample_shape == shape
    assert teacher.image_size == pixels
    assert teacher.supports_camera == camera
    assert (teacher.vae is None) == (shape[0] == 3)
    assert teacher.calls == 0
    output = capfd.readouterr()
    assert output.out == output.err == ""


def test_half_precision_variants_are_found(copy_of, checkpoint):
    folder = copy_of("sd15")
    for weights in folder.rglob("*.safetensors"):
        half = {name: tensor.half() for name, tensor in load_file(weights).items()}
        save_file(half, weights.with_suffix(".fp16.safetensors"), metadata={"format": "pt"})
        weights.unlink()
    teacher = load(folder)
    assert teacher.dtype == torch.float32
    condition = teacher.encode_prompt(["a red mug"]).embeddings
    full = load(checkpoint("sd15")).encode_prompt(["a red mug"]).embeddings
    torch.testing.assert_close(condition, full, atol=2e-2, rtol=0)


def test_sharded_weights_load(copy_of):
    folder = copy_of("sd15")
    whole = load(folder)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    whole.network.save_pretrained(folder / "unet", max_shard_size="20KB")
    assert len(list((folder / "unet").glob("*-of-*.safetensors"))) > 1
    sharded = load(folder)
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(tensor, sharded.network.state_dict()[name])


def test_dtype_is_the_networks_and_the_autoencoder_stays_float32(checkpoint):
    teacher = load(checkpoint("sd15"), dtype=torch.float16)
    assert teacher.dtype == torch.float16
    assert teacher.vae.dtype == torch.float32
    assert teacher.prompts.encoders[0].dtype == torch.float16


@pytest.mark.skipif(
    not (hub.importlib.resources.files("dreamkit_assets") / "toyworld-teacher").is_dir(),
    reason="the embedded weights are not in this checkout",
)
def test_the_embedded_teacher_takes_the_same_path():
    teacher = load_teacher("toyworld", device="cpu")
    assert teacher.image_size == 64
    assert teacher.supports_camera
    assert {"mug", "red"} <= set(teacher.content_words())


def test_code_that_comes_with_a_model_is_not_run(copy_of, tmp_path):
    folder = copy_of("sd15")
    trace = tmp_path / "it ran"
    code = f"open({str(trace)!r}, 'w').close()\nclass Evil: pass\n"
    for place in (folder, folder / "unet", folder / "text_encoder", folder / "tokenizer"):
        (place / "evil.py").write_text(code)
    edit_json(folder / "text_encoder" / "config.json", auto_map={"AutoModel": "evil.Evil"})
    edit_json(folder / "tokenizer" / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", None]})
    load(folder)
    edit_json(folder / "model_index.json", unet=["evil", "Evil"])
    with pytest.raises(TeacherError, match=r"unet of .* is a Evil"):
        load(folder)
    assert not trace.exists()


# Devices --------------------------------------------------------------------------------------------------------------


def test_devices():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device(torch.device("cpu")) == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(TeacherError, match="'abacus' is not a device"):
        resolve_device("abacus")
    with pytest.raises(TeacherError, match="cuda:99 is not available"):
        resolve_device("cuda:99")


# What is wrong with a folder ------------------------------------------------------------------------------------------


def test_empty_folders(tmp_path):
    with pytest.raises(TeacherError, match=r"lacks the file .*model_index\.json"):
        load(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[1]", '"text"', "\x00\xff", "9" * 5000])
def test_broken_indices(content, tmp_path):
    (tmp_path / "model_index.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(TeacherError, match=r"model_index\.json"):
        load(tmp_path)


@pytest.mark.parametrize(
    "component", ["unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"]
)
def test_missing_components(component, copy_of):
    folder = copy_of("sdxl")
    shutil.rmtree(folder / component)
    with pytest.raises(TeacherError, match=f"lacks its {component} folder"):
        load(folder)


@pytest.mark.parametrize("component", ["unet", "text_encoder", "text_encoder_2", "tokenizer_2"])
def test_components_the_index_does_not_name(component, copy_of):
    folder = copy_of("sdxl")
    edit_json(folder / "model_index.json", **{component: "REMOVE"})
    with pytest.raises(TeacherError, match=rf"names no .*{component}|names no denoising network"):
        load(folder)


@pytest.mark.parametrize(
    ("component", "library", "name", "supported"),
    [
        ("unet", "diffusers", "UNet3DConditionModel", "UNet2DConditionModel, HourglassTransformer"),
        ("vae", "diffusers", "VQModel", "AutoencoderKL"),
        ("text_encoder", "transformers", "LlamaModel", "CLIPTextModel"),
        ("text_encoder_2", "transformers", "CLIPTextModel", "CLIPTextModelWithProjection"),
        ("tokenizer", "transformers", "LlamaTokenizer", "CLIPTokenizer"),
    ],
)
def test_unsupported_classes_list_the_supported(component, library, name, supported, copy_of):
    folder = copy_of("sdxl")
    edit_json(folder / "model_index.json", **{component: [library, name]})
    with pytest.raises(TeacherError) as caught:
        load(folder)
    assert name in caught.value.message
    assert supported in caught.value.hint


def test_transformer_pipelines_are_not_supported_yet(copy_of):
    folder = copy_of("sd15")
    edit_json(folder / "model_index.json", unet="REMOVE", transformer=["diffusers", "SD3Transformer2DModel"])
    with pytest.raises(TeacherError, match="SD3Transformer2DModel, which is not supported"):
        load(folder)


def test_unsupported_schedulers(copy_of):
    folder = copy_of("sd15")
    edit_json(folder / "scheduler" / "scheduler_config.json", _class_name="EDMEulerScheduler")
    with pytest.raises(TeacherError, match="EDMEulerScheduler"):
        load(folder)


@pytest.mark.parametrize(
    "changes", [{"beta_start": "small"}, {"num_train_timesteps": None}, {"trained_betas": "many"}, {"beta_end": [1]}]
)
def test_scheduler_fields_of_the_wrong_kind(changes, copy_of):
    folder = copy_of("sd15")
    edit_json(folder / "scheduler" / "scheduler_config.json", **changes)
    with pytest.raises(TeacherError, match="schedul"):
        load(folder)


def test_pickled_weights_are_refused(copy_of):
    folder = copy_of("sd15")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(TeacherError, match=r"only pickled weights \(diffusion_pytorch_model.bin\).*Only safetensors"):
        load(folder)


def test_missing_weights(copy_of):
    folder = copy_of("sd15")
    (folder / "text_encoder" / "model.safetensors").unlink()
    with pytest.raises(TeacherError, match=r"text_encoder in .* has no weights"):
        load(folder)


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "huge header"])
def test_corrupt_weights(component, damage, copy_of):
    folder = copy_of("sd15")
    (weights,) = (folder / component).glob("*.safetensors")
    content = weights.read_bytes()
    weights.write_bytes(
        {
            "truncated": content[: len(content) // 2],
            "empty": b"",
            "garbage": b"\x93NUMPY" * 100,
            "huge header": (2**60).to_bytes(8, "little") + content[8:],
        }[damage]
    )
    with pytest.raises(TeacherError, match=f"{component} in .* can't be loaded"):
        load(folder)


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(component, value, copy_of):
    folder = copy_of("sd15")
    (weights,) = (folder / component).glob("*.safetensors")
    chosen = []

    def poison(tensors):
        name = sorted(name for name in tensors if name.endswith("weight"))[3]
        tensors[name].view(-1)[-1] = value
        chosen.append(name.removeprefix("text_model."))

    edit_weights(weights, poison)
    with pytest.raises(TeacherError, match="not finite") as caught:
        load(folder)
    assert chosen[0] in caught.value.message


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
def test_incomplete_weights_are_named(component, copy_of):
    folder = copy_of("sd15")
    (weights,) = (folder / component).glob("*.safetensors")
    dropped = []

    def drop(tensors):
        name = sorted(name for name in tensors if name.endswith("weight"))[2]
        del tensors[name]
        dropped.append(name.removeprefix("text_model."))

    edit_weights(weights, drop)
    with pytest.raises(TeacherError, match=r"missing keys|can't be loaded") as caught:
        load(folder)
    assert dropped[0] in caught.value.message


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
def test_weights_of_another_shape(component, copy_of):
    folder = copy_of("sd15")
    (weights,) = (folder / component).glob("*.safetensors")

    def reshape(tensors):
        name = sorted(name for name in tensors if name.endswith("weight"))[2]
        tensors[name] = torch.zeros(3, 3)

    edit_weights(weights, reshape)
    with pytest.raises(TeacherError, match=r"don't fit their configuration|can't be loaded"):
        load(folder)


def test_parts_of_different_models(copy_of, tmp_path):
    folder = copy_of("sd15")
    other = copy_of("sdxl")
    shutil.rmtree(folder / "text_encoder")
    shutil.copytree(other / "text_encoder_2", folder / "text_encoder")
    edit_json(folder / "model_index.json", text_encoder=["transformers", "CLIPTextModelWithProjection"])
    with pytest.raises(TeacherError, match="text of 32 features, but the text encoder writes 48"):
        load(folder)


def replace_unet(folder, **options):
    import conftest

    shutil.rmtree(folder / "unet")
    conftest.tiny_unet(**options).save_pretrained(folder / "unet")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"in_channels": 9}, "takes 9 channels where a sample has 4"),
        ({"class_embed_type": "timestep"}, "upscaler"),
        ({"num_class_embeds": 10}, "upscaler"),
        ({"sample_size": (8, 12)}, "only square"),
        ({"sample_size": None}, "sample_size"),
        (
            {"addition_embed_type": "image", "encoder_hid_dim": 32, "encoder_hid_dim_type": "text_proj"},
            "additional input of type 'image'",
        ),
    ],
)
def test_networks_that_need_more_than_a_prompt(options, match, copy_of):
    folder = copy_of("sd15")
    replace_unet(folder, **options)
    with pytest.raises(TeacherError, match=match):
        load(folder)


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_broken_component_configurations(content, copy_of):
    folder = copy_of("sd15")
    (folder / "unet" / "config.json").write_text(content)
    with pytest.raises(TeacherError, match="unet"):
        load(folder)


@pytest.mark.parametrize("damage", [lambda text: "", lambda text: "{}", lambda text: text[:200]])
def test_broken_tokenizers(damage, copy_of):
    folder = copy_of("toyworld")
    path = folder / "tokenizer" / "tokenizer.json"
    path.write_text(damage(path.read_text()))
    with pytest.raises(TeacherError, match=r"tokenizer in .* can't be loaded"):
        load(folder)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    file=st.sampled_from(
        [
            "model_index.json",
            "scheduler/scheduler_config.json",
            "denoiser/config.json",
            "denoiser/diffusion_pytorch_model.safetensors",
            "text_encoder/config.json",
            "tokenizer/tokenizer.json",
        ]
    ),
    place=st.floats(0, 1),
    replacement=st.binary(min_size=1, max_size=4),
)
def test_any_damaged_byte_loads_or_is_explained(file, place, replacement, checkpoint, tmp_path):
    """Damage may go unnoticed (a changed weight is a weight), but nothing except TeacherError reaches the user."""
    folder = tmp_path / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(checkpoint("toyworld"), folder)
    path = folder / file
    content = bytearray(path.read_bytes())
    start = int(place * (min(len(content), 4000) - len(replacement)))
    content[start : start + len(replacement)] = replacement
    path.write_bytes(content)
    with contextlib.suppress(TeacherError):
        load(folder)
