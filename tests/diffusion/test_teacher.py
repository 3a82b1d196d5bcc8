"""Teachers of every supported format against diffusers' own pipelines, and the promises of the interface."""

import pytest
import torch

from dreamkit.diffusion.condition import Condition
from dreamkit.diffusion.guidance import guide
from dreamkit.diffusion.loading import load_teacher
from dreamkit.diffusion.text import tokenize
from dreamkit.errors import ConfigError, PromptError, TeacherError
from dreamkit.prompts import check_prompt

FORMATS = ("sd15", "sd21", "sdxl", "deepfloyd", "toyworld")
LATENT = ("sd15", "sd21", "sdxl")
PROMPTS = ["a red mug, front view", "the blue cube"]


@pytest.fixture(scope="module")
def teacher_of(checkpoint):
    made = {}

    def get(name):
        if name not in made:
            made[name] = load_teacher(str(checkpoint(name)), device="cpu")
        return made[name]

    return get


@pytest.fixture(params=FORMATS)
def teacher(request, teacher_of):
    return teacher_of(request.param)


def pipeline_of(checkpoint, name):
    import diffusers

    kinds = {
        "sd15": diffusers.StableDiffusionPipeline,
        "sd21": diffusers.StableDiffusionPipeline,
        "sdxl": diffusers.StableDiffusionXLPipeline,
        "deepfloyd": diffusers.IFPipeline,
    }
    pipeline = kinds[name].from_pretrained(checkpoint(name), local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def noise(teacher, batch, seed=0):
    return torch.randn(batch, *teacher.sample_shape, generator=torch.Generator().manual_seed(seed))


def pose(batch, seed=0):
    return torch.randn(batch, 12, generator=torch.Generator().manual_seed(seed))


# Against diffusers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd15", "sd21"])
@torch.no_grad()
def test_stable_diffusion_embeddings_and_predictions_are_diffusers_own(name, checkpoint, teacher_of):
    teacher, pipeline = teacher_of(name), pipeline_of(checkpoint, name)
    positive, negative = pipeline.encode_prompt(PROMPTS, "cpu", 1, True, negative_prompt=["blue", "blue"])
    ours = teacher.encode_prompt(PROMPTS)
    torch.testing.assert_close(ours.embeddings, positive, atol=1e-5, rtol=0)
    torch.testing.assert_close(teacher.encode_prompt(["blue"] * 2).embeddings, negative, atol=1e-5, rtol=0)
    _, empty = pipeline.encode_prompt(PROMPTS, "cpu", 1, True)
    torch.testing.assert_close(teacher.null_condition(2).embeddings, empty, atol=1e-5, rtol=0)

    x_t, index = noise(teacher, 2), torch.tensor([10, 800])
    output = pipeline.unet(x_t, index, encoder_hidden_states=positive).sample
    prediction = teacher.predict(x_t, teacher.schedule.from_timestep(index), ours)
    theirs = prediction.eps if name == "sd15" else prediction.v
    assert teacher.prediction_type == ("eps" if name == "sd15" else "v")
    torch.testing.assert_close(theirs, output, atol=1e-5, rtol=0)


@torch.no_grad()
def test_sdxl_embeddings_and_predictions_are_diffusers_own(checkpoint, teacher_of):
    teacher, pipeline = teacher_of("sdxl"), pipeline_of(checkpoint, "sdxl")
    positive, zeros, pooled, pooled_zeros = pipeline.encode_prompt(PROMPTS, device="cpu")
    ours, null = teacher.encode_prompt(PROMPTS), teacher.null_condition(2)
    torch.testing.assert_close(ours.embeddings, positive, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.pooled, pooled, atol=1e-5, rtol=0)
    assert torch.equal(null.embeddings, zeros)
    assert torch.equal(null.pooled, pooled_zeros)
    _, negative, _, pooled_negative = pipeline.encode_prompt(PROMPTS, device="cpu", negative_prompt=["", ""])
    empty = teacher.encode_prompt(["", ""])
    torch.testing.assert_close(empty.embeddings, negative, atol=1e-5, rtol=0)
    torch.testing.assert_close(empty.pooled, pooled_negative, atol=1e-5, rtol=0)

    assert teacher.image_size == 16
    time_ids = pipeline._get_add_time_ids((16, 16), (0, 0), (16, 16), torch.float32, 24).repeat(2, 1)
    assert torch.equal(ours.extra["time_ids"], time_ids)
    x_t, index = noise(teacher, 2), torch.tensor([10, 800])
    output = pipeline.unet(
        x_t,
        index,
        encoder_hidden_states=positive,
        added_cond_kwargs={"text_embeds": pooled, "time_ids": time_ids},
    ).sample
    prediction = teacher.predict(x_t, teacher.schedule.from_timestep(index), ours)
    torch.testing.assert_close(prediction.eps, output, atol=1e-5, rtol=0)


@torch.no_grad()
def test_deepfloyd_embeddings_and_predictions_are_diffusers_own(checkpoint, teacher_of):
    teacher, pipeline = teacher_of("deepfloyd"), pipeline_of(checkpoint, "deepfloyd")
    prompts = ["A red MUG, front view", "the blue cube"]
    positive, negative = pipeline.encode_prompt(prompts)
    ours = teacher.encode_prompt(prompts)
    torch.testing.assert_close(ours.embeddings, positive, atol=1e-5, rtol=0)
    torch.testing.assert_close(teacher.null_condition(2).embeddings, negative, atol=1e-5, rtol=0)
    x_t, index = noise(teacher, 2), torch.tensor([10, 800])
    output = pipeline.unet(x_t, index, encoder_hidden_states=positive).sample
    assert output.shape[1] == 6
    prediction = teacher.predict(x_t, teacher.schedule.from_timestep(index), ours)
    torch.testing.assert_close(prediction.eps, output[:, :3], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", LATENT)
@torch.no_grad()
def test_samples_are_those_of_the_pipeline(name, checkpoint, teacher_of):
    from diffusers import DDIMScheduler

    teacher, pipeline = teacher_of(name), pipeline_of(checkpoint, name)
    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=False, steps_offset=0
    )
    latents = torch.randn(2, *teacher.sample_shape, generator=torch.Generator().manual_seed(5))
    theirs = pipeline(
        PROMPTS,
        num_inference_steps=10,
        guidance_scale=3.0,
        latents=latents,
        height=16,
        width=16,
        output_type="pt",
    ).images
    ours = teacher.sample(PROMPTS, steps=10, guidance=3.0, generator=torch.Generator().manual_seed(5))
    assert ours.std() > 1e-3
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", LATENT)
@torch.no_grad()
def test_images_are_encoded_as_the_pipelines_do(name, checkpoint, teacher_of):
    teacher, vae = teacher_of(name), pipeline_of(checkpoint, name).vae
    image = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    theirs = vae.encode(2 * image - 1).latent_dist.mode() * vae.config.scaling_factor
    torch.testing.assert_close(teacher.encode_image(image), theirs, atol=1e-6, rtol=0)
    decoded = vae.decode(theirs / vae.config.scaling_factor).sample
    torch.testing.assert_close(teacher.decode(theirs), (decoded / 2 + 0.5).clamp(0, 1), atol=1e-6, rtol=0)


# The interface --------------------------------------------------------------------------------------------------------


def test_teachers_are_frozen(teacher):
    modules = [teacher.network, teacher.vae, *teacher.prompts.encoders]
    for module in filter(None, modules):
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())
    assert teacher.device.type == "cpu"
    assert teacher.dtype == torch.float32
    assert teacher.name in repr(teacher)


def test_predictions_track_gradients_only_when_asked(teacher):
    condition, x_t = teacher.encode_prompt(["a red mug"]), noise(teacher, 1).requires_grad_()
    assert not teacher.predict(x_t, 0.5, condition).x0.requires_grad
    guided = teacher.predict_guided(x_t, 0.5, condition, teacher.null_condition(), 3.0)
    assert not guided.guided.eps.requires_grad
    teacher.predict(x_t, 0.5, condition, differentiable=True).x0.sum().backward()
    assert torch.isfinite(x_t.grad).all()
    assert x_t.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in teacher.network.parameters())


def test_gradients_flow_through_encode_image(teacher):
    image = torch.rand(2, 3, 40, 24, generator=torch.Generator().manual_seed(0)).requires_grad_()
    x = teacher.encode_image(image)
    assert x.shape == (2, *teacher.sample_shape)
    x.square().sum().backward()
    assert torch.isfinite(image.grad).all()
    assert (image.grad.abs().amax(dim=1) > 0).float().mean() > 0.9


@pytest.mark.parametrize("name", ["deepfloyd", "toyworld"])
def test_pixel_teachers_work_on_minus_one_to_one(name, teacher_of):
    teacher = teacher_of(name)
    size = teacher.image_size
    image = torch.rand(1, 3, size, size)
    torch.testing.assert_close(teacher.encode_image(image), 2 * image - 1)
    torch.testing.assert_close(teacher.decode(teacher.encode_image(image)), image)
    doubled = image.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(teacher.encode_image(doubled), 2 * image - 1)
    grey = torch.full((1, 3, size // 2, size // 2), 0.25)
    torch.testing.assert_close(teacher.encode_image(grey), torch.full_like(image, -0.5))


def test_shift_factor_is_part_of_the_latent(teacher_of):
    teacher = teacher_of("sd15")
    image = torch.rand(1, 3, 16, 16)
    plain, config = teacher.encode_image(image), teacher.vae.config
    try:
        teacher.vae.register_to_config(shift_factor=0.25)
        shifted = teacher.encode_image(image)
        torch.testing.assert_close(shifted, plain - 0.25 * config.scaling_factor, atol=1e-6, rtol=0)
        torch.testing.assert_close(
            teacher.decode(shifted),
            torch.clamp(teacher.vae.decode(plain / config.scaling_factor).sample / 2 + 0.5, 0, 1),
        )
    finally:
        teacher.vae.register_to_config(shift_factor=None)


def test_guided_call_is_one_batch_of_the_separate_calls(teacher):
    calls, batches = teacher.calls, []
    positive, negative, null = (
        teacher.encode_prompt(PROMPTS),
        teacher.encode_prompt(["the green duck"]),
        teacher.null_condition(),
    )
    x_t, t = noise(teacher, 2), torch.tensor([0.2, 0.9])
    camera = pose(2) if teacher.supports_camera else None
    handle = teacher.network.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    guided = teacher.predict_guided(x_t, t, positive, negative, 7.5, camera=camera, null=null)
    handle.remove()
    assert batches == [6]
    assert teacher.calls == calls + 6
    one, two, three = (teacher.predict(x_t, t, c, camera) for c in (positive, negative, null))
    torch.testing.assert_close(guided.positive.eps, one.eps, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(guided.negative.x0, two.x0, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(guided.null.eps, three.eps, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(guided.guided.eps, guide(one.eps, two.eps, 7.5), atol=1e-4, rtol=1e-3)
    without_null = teacher.predict_guided(x_t, t, positive, negative, 7.5, camera=camera)
    assert without_null.null is None


def test_rescaled_guidance_has_the_spread_of_the_prompt_alone(teacher_of):
    teacher = teacher_of("sd15")
    positive, negative = teacher.encode_prompt(PROMPTS), teacher.null_condition()
    guided = teacher.predict_guided(noise(teacher, 2), 0.5, positive, negative, 50.0, rescale=1.0)
    torch.testing.assert_close(guided.guided.eps.flatten(1).std(1), guided.positive.eps.flatten(1).std(1))


def test_one_time_for_all_equals_one_for_each(teacher):
    condition, x_t = teacher.encode_prompt(PROMPTS), noise(teacher, 2)
    together = teacher.predict(x_t, 0.5, condition)
    each = teacher.predict(x_t, torch.tensor([0.5, 0.5]), condition)
    torch.testing.assert_close(together.x0, each.x0)


def test_prompts_and_cameras_matter(teacher):
    x_t = noise(teacher, 1)
    one, two = (teacher.predict(x_t, 0.5, teacher.encode_prompt([prompt])).eps for prompt in PROMPTS)
    assert not torch.equal(one, two)
    if teacher.supports_camera:
        condition = teacher.encode_prompt(PROMPTS[:1])
        seen = [teacher.predict(x_t, 0.5, condition, camera).eps for camera in (None, pose(1), pose(1, seed=1))]
        assert not torch.equal(seen[0], seen[1])
        assert not torch.equal(seen[1], seen[2])


def test_the_same_prompt_has_the_same_bytes_whatever_it_is_batched_with(checkpoint):
    fresh = load_teacher(str(checkpoint("sdxl")), device="cpu")
    other = load_teacher(str(checkpoint("sdxl")), device="cpu")
    together = fresh.encode_prompt([*PROMPTS, "a cube"])[1]
    alone = other.encode_prompt([PROMPTS[1]])
    assert torch.equal(together.embeddings, alone.embeddings)
    assert torch.equal(together.pooled, alone.pooled)


def test_prompts_are_encoded_once(checkpoint):
    teacher = load_teacher(str(checkpoint("toyworld")), device="cpu")
    count = []
    handle = teacher.prompts.encoders[0].register_forward_pre_hook(lambda *_: count.append(1))
    teacher.encode_prompt(["a red mug", "a red mug", "a cube"])
    teacher.encode_prompt(["a cube"])
    assert len(count) == 2
    for index in range(300):  # the cache is bounded
        teacher.encode_prompt([f"a cube {index}"])
    assert len(teacher.prompts._cache) == 256
    handle.remove()


def test_samples_repeat_with_the_seed(teacher):
    camera = pose(2) if teacher.supports_camera else None
    images = [teacher.sample(PROMPTS, 3, 2.0, torch.Generator().manual_seed(seed), camera=camera) for seed in (3, 3, 4)]
    assert images[0].shape == (2, 3, teacher.image_size, teacher.image_size)
    assert images[0].dtype == torch.float32
    assert images[0].min() >= 0
    assert images[0].max() <= 1
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


def test_sampling_without_guidance_skips_the_negative(teacher):
    before = teacher.calls
    teacher.sample(PROMPTS, 3, 1.0, torch.Generator().manual_seed(0), negative="blue")
    assert teacher.calls == before + 6


def test_half_precision_predictions_are_float32_and_close(checkpoint, teacher_of):
    full = teacher_of("toyworld")
    half = load_teacher(str(checkpoint("toyworld")), device="cpu", dtype=torch.float16)
    assert half.dtype == torch.float16
    x_t = noise(full, 2)
    one, two = (t.predict(x_t, 0.5, t.encode_prompt(PROMPTS), pose(2)) for t in (full, half))
    assert two.x0.dtype == two.eps.dtype == torch.float32
    torch.testing.assert_close(two.x0, one.x0, atol=2e-2, rtol=2e-2)


# Vocabulary -----------------------------------------------------------------------------------------------------------


def test_closed_vocabulary(teacher_of):
    teacher = teacher_of("toyworld")
    assert teacher.unknown_words("A red Zebra on the tabel, front view") == ["Zebra", "tabel"]
    assert teacher.unknown_words("a red mug") == []
    assert teacher.content_words() == ["blue", "cube", "duck", "green", "mug", "red", "table"]
    (warning,) = check_prompt(teacher, "a red tabel")
    assert "nearest known: table" in warning
    with pytest.raises(PromptError):
        check_prompt(teacher, "ein roter Becher")


def test_listed_content_words_win(teacher_of):
    prompts = teacher_of("toyworld").prompts
    prompts.tokenizers[0].init_kwargs["dreamkit_content_words"] = ["mug", "duck"]
    try:
        assert prompts.content_words() == ["duck", "mug"]
    finally:
        del prompts.tokenizers[0].init_kwargs["dreamkit_content_words"]


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "toyworld"])
def test_open_vocabulary(name, teacher_of):
    teacher = teacher_of(name)
    assert teacher.unknown_words("a baroque zeppelin") == []
    assert teacher.content_words() is None
    assert check_prompt(teacher, "zeppelin") == []


def test_text_that_does_not_fit_is_named(teacher):
    prompt = "a red mug on the table " * 30
    dropped = teacher.dropped_text(prompt)
    assert dropped
    assert prompt.endswith(dropped)
    assert teacher.dropped_text("a red mug") == ""
    kept = prompt[: len(prompt) - len(dropped)]
    assert torch.equal(teacher.encode_prompt([prompt]).embeddings, teacher.encode_prompt([kept + "cube"]).embeddings)


def test_a_tokenizer_without_a_length_is_padded_to_the_encoders_window(teacher_of, monkeypatch):
    prompts = teacher_of("toyworld").prompts
    monkeypatch.setattr(prompts.tokenizers[0], "model_max_length", int(1e30))
    tokens = tokenize(prompts.tokenizers[0], prompts.encoders[0], ["a red mug", "a cube"])
    assert tokens["input_ids"].shape == tokens["attention_mask"].shape == (2, 12)


# Conditions -----------------------------------------------------------------------------------------------------------


def test_conditions_select_repeat_join_and_move():
    condition = Condition(
        torch.arange(24.0).reshape(3, 4, 2), torch.arange(3.0)[:, None], {"time_ids": torch.arange(18).reshape(3, 6)}
    )
    assert len(condition) == 3
    assert condition[1].embeddings.shape == (1, 4, 2)
    assert condition[1].pooled.item() == 1
    assert len(condition[1:]) == 2
    assert condition[[2, 0]].pooled.flatten().tolist() == [2, 0]
    assert condition[torch.tensor([0, 0])].extra["time_ids"].shape == (2, 6)
    assert condition.index_select(torch.tensor([2, 2, 1, 0])).pooled.flatten().tolist() == [2, 2, 1, 0]
    assert condition.repeat(2).pooled.flatten().tolist() == [0, 1, 2, 0, 1, 2]
    joined = Condition.cat([condition, condition[0]])
    assert joined.embeddings.shape == (4, 4, 2)
    assert joined.pooled.flatten().tolist() == [0, 1, 2, 0]
    assert joined.extra["time_ids"].shape == (4, 6)
    assert condition.to("cpu", torch.float64).embeddings.dtype == torch.float64
    plain = Condition(torch.zeros(1, 2, 3))
    assert Condition.cat([plain, plain]).pooled is None


# Mistakes -------------------------------------------------------------------------------------------------------------


def test_mistakes_are_explained(teacher):
    condition, x_t = teacher.encode_prompt(PROMPTS), noise(teacher, 3)
    with pytest.raises(TeacherError, match="2 prompts were given for 3 samples"):
        teacher.predict(x_t, 0.5, condition)
    with pytest.raises(TeacherError, match="denoises samples of"):
        teacher.predict(x_t[:, :1], 0.5, condition[0])
    with pytest.raises(TeacherError, match=r"\[B, 3, H, W\]"):
        teacher.encode_image(torch.zeros(1, 1, 8, 8))
    with pytest.raises(TeacherError, match="list of at least one prompt"):
        teacher.encode_prompt("a red mug")
    with pytest.raises(TeacherError, match="list of at least one prompt"):
        teacher.encode_prompt([])
    with pytest.raises(ConfigError, match="at least 1 step"):
        teacher.sample(PROMPTS, 0, 3.0, torch.Generator())
    if teacher.supports_camera:
        with pytest.raises(TeacherError, match=r"\[3, 12\]"):
            teacher.predict(x_t, 0.5, condition[0], camera=torch.zeros(1, 12))
    else:
        with pytest.raises(TeacherError, match="no camera conditioning"):
            teacher.predict(x_t, 0.5, condition[0], camera=torch.zeros(3, 12))
