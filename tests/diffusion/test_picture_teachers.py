"""Teachers that read a picture: Stable Diffusion Image Variations against diffusers' own pipeline, Zero123 by hand."""

import copy
import json
import math
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from dreamkit.config import Schedule
from dreamkit.diffusion.critic import CriticConfig, NetworkCritic
from dreamkit.diffusion.loading import load_teacher
from dreamkit.diffusion.picture_encoder import square_on_white
from dreamkit.diffusion.sampling import ddim
from dreamkit.diffusion.teacher import Query
from dreamkit.diffusion.zero123 import relative_camera
from dreamkit.errors import TeacherError
from dreamkit.scenes.cameras import Camera

WIDTH = 32  # of an embedding, and of the token that the network reads


def image_encoder():
    """A tiny CLIP image encoder of 32x32 pixels."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=24,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=32,
            patch_size=8,
            projection_dim=WIDTH,
        )
    )


def scheduler():
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        timestep_spacing="trailing",
    )


def make_variation(folder):
    """Stable Diffusion Image Variations, saved by diffusers' pipeline."""
    import conftest
    from diffusers import StableDiffusionImageVariationPipeline
    from transformers import CLIPImageProcessor

    extractor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    StableDiffusionImageVariationPipeline(
        vae=conftest.tiny_vae(),
        image_encoder=image_encoder(),
        unet=conftest.tiny_unet(),
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=extractor,
        requires_safety_checker=False,
    ).save_pretrained(folder, safe_serialization=True)


def make_zero123(folder, layer="cc_projection", linear="projection", width=WIDTH, **unet):
    """Zero123 in the layout of the community pipeline, part by part; the layer is the community's class, by hand."""
    import conftest
    from diffusers.configuration_utils import ConfigMixin
    from diffusers.models.modeling_utils import ModelMixin

    class Projection(ModelMixin, ConfigMixin):
        def __init__(self):
            super().__init__()
            setattr(self, linear, nn.Linear(width + 4, WIDTH))

    name = {"cc_projection": "CCProjection", "clip_camera_projection": "CLIPCameraProjection"}[layer]
    config = {"in_channel": width + 4, "out_channel": WIDTH}
    if layer == "clip_camera_projection":
        config = {"embedding_dim": width, "additional_embeddings": 4}
    Projection().save_pretrained(folder / layer)
    (folder / layer / "config.json").write_text(json.dumps({"_class_name": name, **config}))
    conftest.tiny_vae(scaling_factor=0.5).save_pretrained(folder / "vae")
    conftest.tiny_unet(**{"in_channels": 8, **unet}).save_pretrained(folder / "unet")
    image_encoder().save_pretrained(folder / "image_encoder")
    scheduler().save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "Zero1to3StableDiffusionPipeline",
        layer: ["pipeline_zero1to3", name],
        "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))


def make_picture_teacher(kind, folder):
    """A tiny random checkpoint of a kind, the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        if kind == "variation":
            make_variation(folder)
        elif kind == "zero123":
            make_zero123(folder)
        else:
            make_zero123(folder, "clip_camera_projection", "proj")
    return folder


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    made = {}

    def get(kind):
        if kind not in made:
            made[kind] = make_picture_teacher(kind, tmp_path_factory.mktemp(kind) / "teacher")
        return made[kind]

    return get


@pytest.fixture(scope="module")
def teacher_of(folder_of):
    made = {}

    def get(kind):
        if kind not in made:
            made[kind] = load_teacher(str(folder_of(kind)), "cpu")
        return made[kind]

    return get


def picture(size=32, seed=0):
    """Random 8-bit pixels, [3, size, size] in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, size, size), generator=generator).float() / 255


def noise(teacher, batch, seed=0):
    return torch.randn(batch, *teacher.sample_shape, generator=torch.Generator().manual_seed(seed))


SOURCE = Camera.orbit(30.0, 15.0, 3.0).pose[0]
VIEWS = Camera.orbit([30.0, 120.0, -75.0], [15.0, -10.0, 60.0], [3.0, 2.8, 3.2]).pose


def condition_of(teacher, source=SOURCE):
    return teacher.encode_picture(picture(), source if teacher.supports_camera else None)


def cameras_of(teacher):
    return VIEWS if teacher.supports_camera else None


@pytest.fixture(scope="module")
def pipeline(folder_of):
    from diffusers import StableDiffusionImageVariationPipeline

    pipeline = StableDiffusionImageVariationPipeline.from_pretrained(folder_of("variation"), local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


class TestVariations:
    """Against `StableDiffusionImageVariationPipeline`."""

    @staticmethod
    def as_file(picture):
        from PIL import Image

        return Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).numpy())

    @torch.no_grad()
    def test_the_token_and_no_picture(self, pipeline, teacher_of):
        teacher = teacher_of("variation")
        null, positive = pipeline._encode_image(self.as_file(picture()), "cpu", 1, True).split(1)
        torch.testing.assert_close(teacher.encode_picture(picture()).embeddings, positive, atol=1e-5, rtol=0)
        assert torch.equal(teacher.null_condition(2).embeddings, null.repeat(2, 1, 1))
        assert positive.std() > 0.1

    @torch.no_grad()
    @pytest.mark.parametrize("size", [20, 80])
    def test_pictures_of_another_size_are_resized_as_the_feature_extractor_does(self, size, pipeline, teacher_of):
        """Pillow rounds to 8 bits on the way, so up to a level or two."""
        smooth = functional.interpolate(picture(5)[None], (size, size), mode="bicubic").clamp(0, 1)[0]
        theirs = pipeline.feature_extractor(images=self.as_file(smooth), return_tensors="pt").pixel_values
        encoder = teacher_of("variation").prompts
        ours = (encoder._pixels(smooth[None], 32) - encoder._mean) / encoder._std
        torch.testing.assert_close(ours, theirs, atol=2.5 / 255 / 0.26, rtol=0)

    @torch.no_grad()
    def test_samples_are_those_of_the_pipeline(self, pipeline, teacher_of):
        teacher = teacher_of("variation")
        latents = noise(teacher, 2, seed=5)
        images = [self.as_file(picture(seed=seed)) for seed in (0, 1)]
        theirs = pipeline(images, num_inference_steps=2, guidance_scale=3.0, latents=latents, output_type="pt").images
        positive = [teacher.encode_picture(picture(seed=seed)) for seed in (0, 1)]
        x = ddim(teacher, latents, type(positive[0]).cat(positive), teacher.null_condition(1), 2, 3.0)
        ours = teacher.decode(x)
        assert ours.std() > 1e-3
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)

    def test_what_it_is(self, teacher_of):
        teacher = teacher_of("variation")
        assert teacher.reads_pictures
        assert not teacher.supports_camera
        assert teacher.sample_shape == (4, 8, 8)


@pytest.mark.parametrize("kind", ["zero123", "zero123-proj"])
class TestZero123:
    def test_what_it_is(self, kind, teacher_of):
        teacher = teacher_of(kind)
        assert teacher.reads_pictures
        assert teacher.supports_camera
        assert teacher.sample_shape == (4, 8, 8)
        assert teacher.image_size == 16

    @torch.no_grad()
    def test_the_guided_prediction_by_hand(self, kind, teacher_of):
        """One view at a time, as Zero123's own code does it (angles in degrees, polar = 90 - elevation)."""
        teacher = teacher_of(kind)
        x_t, index = noise(teacher, 3), torch.tensor([100, 500, 900])
        answer = teacher.predict_guided(
            x_t,
            teacher.schedule.from_timestep(index),
            teacher.encode_picture(picture(), SOURCE),
            teacher.null_condition(1),
            3.0,
            VIEWS,
        )
        encoder, layer = teacher.prompts.encoders
        layer = layer.projection if kind == "zero123" else layer.proj
        small = functional.interpolate(picture()[None], (16, 16), mode="area") * 2 - 1
        latents = teacher.vae.encode(small).latent_dist.mode()
        pixels = functional.interpolate(small, (32, 32), mode="bicubic", align_corners=True) / 2 + 0.5
        mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
        std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
        embedding = encoder((pixels - mean) / std).image_embeds
        for row, (azimuth, elevation, radius) in enumerate([(30, 15, 3.0), (120, -10, 2.8), (-75, 60, 3.2)]):
            polar = math.radians((90 - elevation) - (90 - 15))
            turn = math.radians(azimuth - 30)
            camera = torch.tensor([[polar, math.sin(turn), math.cos(turn), radius - 3.0]])
            token = layer(torch.cat([embedding, camera], dim=1))[:, None]
            x = x_t[row : row + 1]
            known = teacher.network(torch.cat([x, latents], 1), index[row], token).sample
            unknown = teacher.network(torch.cat([x, 0 * latents], 1), index[row], 0 * token).sample
            expected = unknown + 3.0 * (known - unknown)
            torch.testing.assert_close(answer.guided.eps[row : row + 1], expected, atol=1e-4, rtol=0)
            torch.testing.assert_close(answer.negative.eps[row : row + 1], unknown, atol=1e-5, rtol=0)
        assert float((answer.positive.eps - answer.negative.eps).abs().max()) > 1e-3

    def test_the_pictures_latents_are_not_scaled(self, kind, teacher_of):
        teacher = teacher_of(kind)
        condition = teacher.encode_picture(picture(16), SOURCE)
        scaled = teacher.encode_image(picture(16)[None])
        torch.testing.assert_close(condition.extra["source_latents"] * 0.5, scaled, atol=1e-6, rtol=0)

    def test_without_a_camera_or_a_picture_the_token_is_zero(self, kind, teacher_of):
        encoder = teacher_of(kind).prompts
        known, null = encoder.encode_picture(picture(), SOURCE), encoder.null(1)
        both = type(known).cat([known, known, null])
        camera = torch.stack([SOURCE, torch.zeros(12), SOURCE])
        tokens = encoder.tokens(both, camera)
        assert tokens[0].abs().max() > 0
        assert tokens[1:].abs().max() == 0
        assert encoder.tokens(both, None).abs().max() == 0
        assert null.extra["source_latents"].shape == (1, 4, 8, 8)
        assert null.extra["source_latents"].abs().max() == 0

    def test_a_pose_is_needed(self, kind, teacher_of):
        with pytest.raises(TeacherError, match="camera it was taken from"):
            teacher_of(kind).encode_picture(picture())


class TestRelativeCamera:
    def test_none_at_the_picture_itself(self):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            own = relative_camera(VIEWS.to(dtype), VIEWS.to(dtype))
            assert torch.equal(own, torch.tensor([[0.0, 0.0, 1.0, 0.0]]).expand(3, 4))

    @given(
        st.lists(st.tuples(st.floats(-180, 180), st.floats(-89.9, 89.9), st.floats(0.5, 5.0)), min_size=2, max_size=2)
    )
    def test_is_that_of_zero123s_data(self, pair):
        """Zero123's world: z up, theta down from z, azimuth from x to y; its front is our +z, its y our +x."""

        def spherical(azimuth, elevation, radius):
            ours = Camera.orbit(azimuth, elevation, radius).position[0].double().tolist()
            x, y, z = ours[2], ours[0], ours[1]
            return math.atan2(math.hypot(x, y), z), math.atan2(y, x), math.sqrt(x * x + y * y + z * z)

        source, view = (Camera.orbit(*values).pose for values in pair)
        (theta_a, azimuth_a, radius_a), (theta_b, azimuth_b, radius_b) = (spherical(*values) for values in pair)
        turn = (azimuth_b - azimuth_a) % (2 * math.pi)
        expected = torch.tensor([[theta_b - theta_a, math.sin(turn), math.cos(turn), radius_b - radius_a]])
        torch.testing.assert_close(relative_camera(view, source), expected, atol=2e-3, rtol=0)

    @pytest.mark.parametrize("elevation", [90.0, -90.0])
    def test_a_picture_from_straight_above_or_below(self, elevation):
        source, view = Camera.orbit(40.0, elevation, 3.0).pose, Camera.orbit(130.0, 0.0, 3.0).pose
        expected = torch.tensor([[math.radians(elevation), 1.0, 0.0, 0.0]])
        torch.testing.assert_close(relative_camera(view, source), expected, atol=1e-5, rtol=0)

    def test_higher_views_have_a_smaller_polar_angle_and_turns_to_the_objects_left_a_positive_sine(self):
        source, view = Camera.orbit(0.0, 0.0, 3.0).pose, Camera.orbit(60.0, 30.0, 3.5).pose
        expected = torch.tensor([[-math.pi / 6, math.sqrt(3) / 2, 0.5, 0.5]])
        torch.testing.assert_close(relative_camera(view, source), expected, atol=1e-5, rtol=0)


class TestSquares:
    def test_transparency_lies_on_white(self):
        red = torch.tensor([1.0, 0.0, 0.0, 0.25]).view(4, 1, 1).expand(4, 6, 6)
        assert torch.equal(square_on_white(red)[0, :, 0, 0], torch.tensor([1.0, 0.75, 0.75]))

    def test_the_middle_as_high_as_the_picture(self):
        columns = torch.arange(9.0).expand(3, 4, 9) / 9
        assert torch.equal(square_on_white(columns), columns[None, :, :, 3:7])
        tall = square_on_white(torch.zeros(3, 8, 3))
        assert tall.shape == (1, 3, 8, 8)
        assert tall[0, 0, 0].tolist() == [1, 1, 0, 0, 0, 1, 1, 1]

    def test_the_same_view_as_a_square_camera(self):
        """A dot in a wide picture is where a square view of the same camera has it."""
        wide = Camera.orbit(20.0, 10.0, 3.0, 40.0, 32, 64)
        dot = wide.project(torch.tensor([[0.3, -0.2, 0.1]]))[0][0, 0]
        image = torch.ones(3, 32, 64)
        image[:, int(dot[1]), int(dot[0])] = 0
        expected = wide.resized(32, 32).project(torch.tensor([[0.3, -0.2, 0.1]]))[0][0, 0]
        dark = (square_on_white(image)[0, 0] == 0).nonzero()[0].tolist()
        assert dark == [int(expected[1]), int(expected[0])]

    @pytest.mark.parametrize("shape", [(3, 8), (1, 3, 8, 8), (2, 8, 8), (3, 0, 8)])
    def test_other_shapes(self, shape):
        with pytest.raises(TeacherError, match="A picture is"):
            square_on_white(torch.zeros(shape))


@pytest.mark.parametrize("kind", ["variation", "zero123"])
class TestEveryKind:
    def test_rows_do_not_see_one_another(self, kind, teacher_of):
        teacher = teacher_of(kind)
        x_t, camera = noise(teacher, 3), cameras_of(teacher)
        whole = teacher.predict(x_t, 0.5, condition_of(teacher), camera).eps
        for row in range(3):
            own = None if camera is None else camera[row : row + 1]
            alone = teacher.predict(x_t[row : row + 1], 0.5, condition_of(teacher), own).eps
            torch.testing.assert_close(alone, whole[row : row + 1], atol=1e-5, rtol=0)

    def test_gradients_reach_x_through_the_network(self, kind, teacher_of):
        teacher = teacher_of(kind)
        x_t = noise(teacher, 3).requires_grad_()
        teacher.predict(x_t, 0.5, condition_of(teacher), cameras_of(teacher), differentiable=True).eps.sum().backward()
        assert x_t.grad.abs().max() > 0
        assert all(not p.requires_grad for module in teacher.prompts.encoders for p in module.parameters())

    def test_half_precision(self, kind, folder_of, teacher_of):
        half = load_teacher(str(folder_of(kind)), "cpu", torch.bfloat16)
        full = teacher_of(kind)
        x_t = noise(full, 3)
        expected = full.predict(x_t, 0.5, condition_of(full), cameras_of(full)).eps
        ours = half.predict(x_t, 0.5, condition_of(half), cameras_of(half)).eps
        torch.testing.assert_close(ours, expected, atol=0.1, rtol=0)

    @pytest.mark.parametrize("critic_kind", ["lora", "copy"])
    def test_a_critic_starts_as_the_teacher_and_leaves_it_alone(self, kind, critic_kind, teacher_of):
        teacher = copy.copy(teacher_of(kind))
        before = {name: tensor.clone() for name, tensor in teacher.network.state_dict().items()}
        critic = NetworkCritic(teacher, CriticConfig(kind=critic_kind, rate=Schedule.constant(1e-2)))
        x, condition, generator = noise(teacher, 3), condition_of(teacher), torch.Generator().manual_seed(0)
        query = Query(x, 0.5, condition, VIEWS)
        first = critic.predict_all([query])[0].eps
        torch.testing.assert_close(
            first, teacher.predict(x, 0.5, condition, cameras_of(teacher)).eps, atol=1e-5, rtol=0
        )
        for _ in range(2):
            critic.update(x, condition, VIEWS, generator)
        assert float((critic.predict_all([query])[0].eps - first).abs().max()) > 1e-5
        assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.network.state_dict().items())

    def test_words_are_refused_but_not_complained_about(self, kind, teacher_of):
        teacher = teacher_of(kind)
        assert teacher.unknown_words("qwertz") == []
        assert teacher.content_words() is None
        assert teacher.dropped_text("a " * 500) == ""
        with pytest.raises(TeacherError, match="reads a picture, not words"):
            teacher.encode_prompt(["a red mug"])
        with pytest.raises(TeacherError, match="reads a picture, not words"):
            teacher.sample(["a red mug"], 1, 1.0, torch.Generator())


def test_pictures_are_refused_by_teachers_that_read_words(tiny_teacher):
    assert not tiny_teacher("sd15").reads_pictures
    with pytest.raises(TeacherError, match="reads words, not pictures"):
        tiny_teacher("sd15").encode_picture(picture())


# Folders --------------------------------------------------------------------------------------------------------------


def edit_json(path, **changes):
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value != "REMOVE"}))


@pytest.fixture
def copy_of(folder_of, tmp_path):
    return lambda kind: shutil.copytree(folder_of(kind), tmp_path / kind)


class TestFolders:
    def test_an_image_encoder_besides_a_text_encoder_is_not_read(self, checkpoint, folder_of, tmp_path):
        folder = shutil.copytree(checkpoint("sd15"), tmp_path / "sd15")
        shutil.copytree(folder_of("variation") / "image_encoder", folder / "image_encoder")
        edit_json(folder / "model_index.json", image_encoder=["transformers", "CLIPVisionModelWithProjection"])
        assert not load_teacher(str(folder), "cpu").reads_pictures

    def test_the_projection_of_the_community_code_says_nothing_of_its_size(self, tmp_path):
        """Its class registers no configuration: the sizes are the defaults, those of Zero123."""
        from dreamkit.diffusion.zero123_layers import CCProjection

        CCProjection().save_pretrained(tmp_path)
        (tmp_path / "config.json").write_text(json.dumps({"_class_name": "CCProjection"}))
        layer = CCProjection.from_pretrained(tmp_path).projection
        assert (layer.in_features, layer.out_features) == (772, 768)

    def test_without_a_feature_extractor_colours_are_those_of_clip(self, copy_of, teacher_of):
        folder = copy_of("variation")
        shutil.rmtree(folder / "feature_extractor")
        edit_json(folder / "model_index.json", feature_extractor="REMOVE")
        ours = load_teacher(str(folder), "cpu").encode_picture(picture()).embeddings
        torch.testing.assert_close(ours, teacher_of("variation").encode_picture(picture()).embeddings)

    def test_the_feature_extractors_colours_are_used(self, copy_of, teacher_of):
        folder = copy_of("variation")
        extractor = folder / "feature_extractor" / "preprocessor_config.json"
        edit_json(extractor, image_mean=[0.5] * 3, image_std=[0.5] * 3)
        ours = load_teacher(str(folder), "cpu").encode_picture(picture()).embeddings
        assert not torch.allclose(ours, teacher_of("variation").encode_picture(picture()).embeddings)

    @pytest.mark.parametrize(
        "changes", [{"image_mean": [0.5]}, {"image_std": [0, 1, 1]}, {"image_std": "many"}, {"image_mean": None}]
    )
    def test_colours_that_make_no_sense(self, changes, copy_of):
        folder = copy_of("variation")
        edit_json(folder / "feature_extractor" / "preprocessor_config.json", **changes)
        with pytest.raises(TeacherError, match="image_mean and image_std"):
            load_teacher(str(folder), "cpu")

    @pytest.mark.parametrize("component", ["image_encoder", "cc_projection", "vae", "unet", "scheduler"])
    def test_missing_parts(self, component, copy_of):
        folder = copy_of("zero123")
        shutil.rmtree(folder / component)
        with pytest.raises(TeacherError, match=f"lacks its {component} folder"):
            load_teacher(str(folder), "cpu")

    @pytest.mark.parametrize(
        ("component", "name"),
        [("image_encoder", "CLIPVisionModel"), ("cc_projection", "Evil"), ("vae", "VQModel")],
    )
    def test_classes_that_are_not_supported(self, component, name, copy_of):
        folder = copy_of("zero123")
        edit_json(folder / "model_index.json", **{component: ["somewhere", name]})
        with pytest.raises(TeacherError, match=f"{component} of .* is a {name}, which is not supported"):
            load_teacher(str(folder), "cpu")

    def test_no_autoencoder(self, copy_of):
        folder = copy_of("zero123")
        edit_json(folder / "model_index.json", vae="REMOVE")
        with pytest.raises(TeacherError, match="names no vae"):
            load_teacher(str(folder), "cpu")

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"in_channels": 4}, "takes 4 channels where a sample and a picture have 4 each"),
            ({"width": 20}, r"reads 24 features where the image encoder's 32 and the camera's 4"),
            ({"cross_attention_dim": 48}, "reads pictures of 48 features, but the image encoder writes 32"),
        ],
    )
    def test_parts_of_different_models(self, options, match, tmp_path):
        make_zero123(tmp_path, **options)
        with pytest.raises(TeacherError, match=match):
            load_teacher(str(tmp_path), "cpu")

    def test_zero123_without_its_projection(self, copy_of):
        folder = copy_of("zero123")
        edit_json(folder / "model_index.json", cc_projection="REMOVE")
        with pytest.raises(TeacherError, match="takes 8 channels where a sample has 4"):
            load_teacher(str(folder), "cpu")
