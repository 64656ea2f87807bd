"""The transformer's promises: shortcuts change nothing, streams are independent, samples are independent."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.tiny_transformers import LTX_VIDEO, OF_19B, OF_23, SIZES, random_model
from torch import Tensor

from ltx_core.errors import ConfigError
from ltx_core.guidance.perturbations import (
    BatchedPerturbationConfig,
    Perturbation,
    PerturbationConfig,
    PerturbationType,
)
from ltx_core.model.transformer.attention import BACKENDS, attention
from ltx_core.model.transformer.config import TransformerConfig
from ltx_core.model.transformer.modality import Modality, TimestepGroups
from ltx_core.model.transformer.model import LTXModel, X0Model
from ltx_core.model.transformer.rope import RotaryEmbedding

SECTION = {
    "_class_name": "AVTransformer3DModel",
    "dropout": 0.0,
    "attention_bias": True,
    "num_vector_embeds": None,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "use_linear_projection": False,
    "only_cross_attention": False,
    "cross_attention_norm": True,
    "double_self_attention": False,
    "upcast_attention": False,
    "standardization_norm": "rms_norm",
    "norm_elementwise_affine": False,
    "qk_norm": "rms_norm",
    "positional_embedding_type": "rope",
    "use_middle_indices_grid": True,
    "use_audio_video_cross_attention": True,
    "share_ff": False,
    "av_cross_ada_norm": True,
    "frequencies_precision": "float64",
    "av_ca_timestep_scale_multiplier": 1000.0,
    "num_layers": 3,
    **SIZES,
}
OF_25 = OF_23 | {"ff_bias": False, "use_keyframes_abs_pos_embedding": True}
SKIP = PerturbationType


def config_of(version: dict) -> TransformerConfig:
    return TransformerConfig.from_metadata({"transformer": SECTION | version})


def random_modality(model: LTXModel, name: str, batch: int, seed: int = 1) -> Modality:
    generator = torch.Generator().manual_seed(seed)
    stream, tokens = model.config.streams[name], {"video": 12, "audio": 7}[name]
    starts = 4 * torch.rand(batch, len(stream.max_pos), tokens, generator=generator)
    sigma = torch.rand(batch, generator=generator)
    return Modality(
        latent=torch.randn(batch, tokens, stream.in_channels, generator=generator),
        sigma=sigma,
        timesteps=sigma[:, None].expand(batch, tokens).clone(),
        positions=torch.stack((starts, starts + 0.1), dim=-1),
        context=torch.randn(batch, 5, model.config.caption_channels or stream.width, generator=generator),
    )


def both(model: LTXModel, batch: int) -> tuple[Modality, Modality]:
    return random_modality(model, "video", batch, seed=1), random_modality(model, "audio", batch, seed=2)


def perturb(*samples: list[tuple[PerturbationType, list[int] | None]]) -> BatchedPerturbationConfig:
    configs = [PerturbationConfig([Perturbation(kind, blocks) for kind, blocks in sample]) for sample in samples]
    return BatchedPerturbationConfig(configs)


def assert_same(got: tuple[Tensor | None, ...], want: tuple[Tensor | None, ...], atol: float = 2e-5) -> None:
    for left, right in zip(got, want, strict=True):
        assert (left is None) == (right is None)
        if left is not None:
            torch.testing.assert_close(left, right, rtol=1e-5, atol=atol)


def assert_differ(left: Tensor | None, right: Tensor | None) -> None:
    assert left is not None and right is not None and (left - right).abs().max() > 1e-3


@pytest.fixture(scope="module", params=[OF_19B, OF_23, OF_25], ids=["19b", "2.3", "2.5"])
def model(request: pytest.FixtureRequest) -> LTXModel:
    return random_model(SECTION | request.param)


@pytest.mark.parametrize("version", [OF_19B, OF_23, OF_25])
def test_a_model_built_on_meta_and_assigned_runs(version: dict) -> None:
    config, source = config_of(version), random_model(SECTION | version)
    with torch.device("meta"):
        built = LTXModel(config)
    built.load_state_dict(source.state_dict(), strict=True, assign=True)
    inputs = both(source, 1)
    assert_same(built.eval()(*inputs), source(*inputs), atol=0)


@pytest.mark.parametrize(("version", "in_block", "outside"), [(OF_19B, 72, 54), (OF_23, 86, 58), (OF_25, 84, 59)])
def test_tensor_counts_are_those_of_the_published_files(version: dict, in_block: int, outside: int) -> None:
    with torch.device("meta"):
        names = list(LTXModel(config_of(version)).state_dict())
    blocks = [name for name in names if name.startswith("transformer_blocks.")]
    assert (len(blocks), len(names) - len(blocks)) == (3 * in_block, outside)


def test_ltx_video_has_the_published_tensor_count_and_runs() -> None:
    model = random_model(LTX_VIDEO | {"num_layers": 2})
    assert len(model.state_dict()) == 2 * 25 + 15
    video = random_modality(model, "video", 1)
    starts = replace(video, positions=video.positions[..., 0])
    assert_same(model(starts), model(video))


def test_ltx_video_reads_a_flat_text_mask_of_any_dtype_as_keep_and_drop() -> None:
    model = random_model(LTX_VIDEO)
    video = random_modality(model, "video", 2)
    kept = torch.ones(video.context.shape[:2], dtype=torch.int64)
    kept[1, 1:] = 0
    integer, floating = (model(replace(video, context_mask=kept.to(dtype))) for dtype in (torch.int64, torch.float32))
    assert_same(integer, floating)
    assert not torch.allclose(integer[0], model(video)[0])


def test_timesteps_of_any_shape_are_read_batch_major(model: LTXModel) -> None:
    video, audio = both(model, 2)
    flat = replace(video, timesteps=video.per_token_timesteps.expand(2, video.latent.shape[1], 1).reshape(-1))
    assert_same(model(flat, audio), model(video, audio))


def test_one_stream_alone_needs_nothing_the_section_says_of_the_other() -> None:
    section = SECTION | OF_23
    joined = ("use_audio_video_cross_attention", "share_ff", "av_cross_ada_norm")
    for names, foreign in ((("video",), "audio_"), (("audio",), "num_attention_heads")):
        alone = {key: value for key, value in section.items() if not key.startswith(foreign) and key not in joined}
        alone |= {"cross_attention_dim": 4096, "attention_head_dim": 128} if names == ("audio",) else {}
        config = TransformerConfig.from_metadata({"transformer": alone}, names)
        assert config == config_of(OF_23).with_streams(*names)
    with pytest.raises(ConfigError, match="share_ff"):
        TransformerConfig.from_metadata({"transformer": {**section, "share_ff": True}}, ("video", "audio"))


def test_interleaved_rotation_takes_odd_head_widths() -> None:
    odd = {"num_attention_heads": 2, "attention_head_dim": 15, "cross_attention_dim": 30}
    assert config_of(OF_23 | odd | {"rope_type": "interleaved"}).video.width == 30
    with pytest.raises(ConfigError, match="attention_head_dim is 15"):
        config_of(OF_23 | odd)


def test_distinct_levels_give_what_every_token_alone_gives(model: LTXModel) -> None:
    video, audio = both(model, 2)
    levels = video.timesteps.clone()
    levels[:, :3], levels[1, 3:5] = 0.0, 0.25
    video = replace(video, timesteps=levels)
    grouped = video.grouped_timesteps()
    assert grouped.index is not None and grouped.values.numel() == 4
    each_alone = TimestepGroups(levels, levels.flatten(), torch.arange(levels.numel()).view_as(levels))
    assert_same(model(video, audio), model(replace(video, timestep_groups=each_alone), audio))


def test_groups_scaled_per_step_equal_groups_of_the_scaled_tensor(model: LTXModel) -> None:
    video, audio = both(model, 1)
    mask = torch.ones(1, 12, 1)
    mask[:, :4] = 0.0
    at_step = TimestepGroups.of(mask).scale_by(torch.tensor(0.7))
    given = replace(video, timesteps=at_step.timesteps, timestep_groups=at_step)
    assert given.grouped_timesteps() is at_step
    assert_same(model(given, audio), model(replace(video, timesteps=0.7 * mask), audio), atol=0)


def test_groups_of_another_tensor_are_ignored(model: LTXModel) -> None:
    video, audio = both(model, 1)
    stale = replace(video, timestep_groups=TimestepGroups.of(torch.zeros(1, 12)))
    assert_same(model(stale, audio), model(video, audio), atol=0)


@pytest.mark.parametrize("shape", [(2, 12), (2, 12, 1), (2, 1), (2,)])
def test_timesteps_may_have_any_of_their_shapes(model: LTXModel, shape: tuple[int, ...]) -> None:
    video, audio = both(model, 2)
    level = video.timesteps[:, :1]
    given = replace(video, timesteps=level.expand(2, 12).reshape(shape) if 12 in shape else level.reshape(shape))
    wrapper = X0Model(model)
    assert_same(wrapper(given, audio), wrapper(video, audio))


def test_sigma_left_out_is_the_largest_timestep(model: LTXModel) -> None:
    video, audio = both(model, 2)
    levels = video.timesteps.clone()
    levels[:, :4] = 0.0
    with_sigma = replace(video, timesteps=levels, sigma=levels.amax(dim=1))
    assert_same(model(replace(with_sigma, sigma=None), audio), model(with_sigma, audio), atol=0)


@pytest.mark.parametrize("kind", list(SKIP))
def test_shortcut_for_a_whole_batch_equals_the_mask_for_a_part(model: LTXModel, kind: PerturbationType) -> None:
    video, audio = both(model, 3)
    mixed = model(video, audio, perturb([(kind, [1])], [(kind, [1])], []))
    whole = model(video.batch_slice(0, 2), audio.batch_slice(0, 2), perturb([(kind, [1])], [(kind, [1])]))
    plain = model(video, audio)
    assert_same(tuple(part[:2] for part in mixed), whole)
    assert_same(tuple(part[2:] for part in mixed), tuple(part[2:] for part in plain))
    written = 1 if kind in (SKIP.SKIP_AUDIO_SELF_ATTN, SKIP.SKIP_V2A_CROSS_ATTN) else 0
    assert_differ(mixed[written][:2], plain[written][:2])


def test_isolated_streams_are_streams_alone(model: LTXModel) -> None:
    video, audio = both(model, 1)
    isolation = perturb([(SKIP.SKIP_A2V_CROSS_ATTN, None), (SKIP.SKIP_V2A_CROSS_ATTN, None)])
    alone = model(video, None)[0], model(None, audio)[1]
    assert_same(model(video, audio, isolation), alone)
    assert_differ(model(video, audio)[0], alone[0])


@pytest.mark.parametrize("name", ["video", "audio"])
def test_one_stream_of_a_joint_model_is_the_single_stream_model(model: LTXModel, name: str) -> None:
    single = LTXModel(model.config.with_streams(name)).eval()
    state = model.state_dict()
    single.load_state_dict({key: state[key] for key in single.state_dict()}, strict=True)
    inputs = {name: random_modality(model, name, 2)}
    assert_same(single(**inputs), model(**inputs), atol=0)


def test_a_batch_is_its_samples(model: LTXModel) -> None:
    video, audio = both(model, 3)
    levels = video.timesteps.clone()
    levels[:2, :3] = 0.0
    mask = torch.rand(3, 12, 12, generator=torch.Generator().manual_seed(3))
    text_mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
    groups = TimestepGroups.of(levels)
    video = replace(video, timesteps=levels, timestep_groups=groups, attention_mask=mask, context_mask=text_mask)
    perturbations = perturb([], [(SKIP.SKIP_VIDEO_SELF_ATTN, [0])], [(SKIP.SKIP_A2V_CROSS_ATTN, None)])
    whole = model(video, audio, perturbations)
    for sample in range(3):
        cut = slice(sample, sample + 1)
        part = model(
            video.batch_slice(cut.start, cut.stop),
            audio.batch_slice(cut.start, cut.stop),
            perturbations.batch_slice(cut.start, cut.stop),
        )
        assert_same(part, tuple(value[cut] for value in whole))


def test_a_disabled_stream_stays_and_is_still_heard(model: LTXModel) -> None:
    video, audio = both(model, 1)
    frozen = replace(audio, enabled=False)
    video_velocity, audio_velocity = model(video, frozen)
    inputs = model.prepare({"video": video, "audio": frozen})
    untouched = model.heads(model.embed({"audio": frozen}), inputs)["audio"]
    assert_same((audio_velocity,), (untouched,), atol=0)
    assert_differ(video_velocity, model(video, None)[0])


def test_positions_expanded_over_the_batch_are_positions_repeated(model: LTXModel) -> None:
    video, audio = both(model, 2)
    one = video.positions[:1]
    expanded, repeated = one.expand(2, -1, -1, -1), one.repeat(2, 1, 1, 1)
    assert_same(
        model(replace(video, positions=expanded), audio), model(replace(video, positions=repeated), audio), atol=1e-6
    )


def test_an_attention_strength_of_zero_hides_a_token(model: LTXModel) -> None:
    video, _ = both(model, 1)
    mask = torch.ones(1, 1, 12)
    mask[..., 6:] = 0.0
    changed = video.latent.clone()
    changed[:, 6:] += 1.0
    masked = replace(video, attention_mask=mask)
    first, second = model(masked)[0], model(replace(masked, latent=changed))[0]
    assert_same((first[:, :6],), (second[:, :6],))


def test_the_keyframe_marker_moves_marked_tokens_whatever_the_mark() -> None:
    model = random_model(SECTION | OF_25)
    video, _ = both(model, 1)
    mask = torch.zeros(1, 12, 1)
    mask[:, :2] = 0.4
    marked, plain = (model.embed({"video": m})["video"] for m in (replace(video, keyframes_mask=mask), video))
    torch.testing.assert_close(marked[:, :2] - plain[:, :2], model.keyframes_abs_pos_embedding.expand(1, 2, -1))
    assert torch.equal(marked[:, 2:], plain[:, 2:])


def test_x0_returns_tokens_at_timestep_zero_unchanged(model: LTXModel) -> None:
    video, audio = both(model, 1)
    levels = video.timesteps.clone()
    levels[:, :5] = 0.0
    video = replace(video, timesteps=levels)
    x0 = X0Model(model)(video, audio)[0]
    assert torch.equal(x0[:, :5], video.latent[:, :5])
    assert_differ(x0[:, 5:], video.latent[:, 5:])


def test_checkpointing_changes_no_gradient(model: LTXModel) -> None:
    video, audio = both(model, 1)
    gradients = []
    for enabled in (False, True):
        latent = video.latent.clone().requires_grad_(True)
        model.train().enable_gradient_checkpointing(enabled)
        velocity, _ = model(replace(video, latent=latent), audio)
        velocity.square().sum().backward()
        gradients.append(latent.grad)
    model.eval().enable_gradient_checkpointing(False)
    assert_same((gradients[1],), (gradients[0],), atol=0)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("name", list(BACKENDS))
def test_backends_agree_or_say_why_not(name: str, with_bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 6, 3, 16, generator=generator)
    k, v = (torch.randn(2, 9, 3, 16, generator=generator) for _ in range(2))
    bias = torch.randn(2, 1, 1, 9, generator=generator) if with_bias else None
    if reason := BACKENDS[name].usable(q, bias):
        with pytest.raises(ConfigError, match=name) as error:
            attention(q, k, v, bias, name)
        assert reason in str(error.value)
        return
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / 4 + (0 if bias is None else bias)
    want = torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v)
    torch.testing.assert_close(attention(q, k, v, bias, name), want, rtol=1e-5, atol=1e-5)


def test_an_unknown_backend_is_refused_with_the_choices(model: LTXModel) -> None:
    with pytest.raises(ConfigError, match="sdpa"):
        model.set_attention_backend("magic")


@pytest.mark.parametrize("rope_type", ["split", "interleaved"])
def test_rotation_keeps_lengths_and_depends_on_distance(rope_type: str) -> None:
    rope = RotaryEmbedding(12, 2, (20,), rope_type=rope_type)
    q, k = torch.randn(2, 1, 1, 12, generator=torch.Generator().manual_seed(0)).expand(2, 1, 4, 12)
    points = torch.tensor([[[0.0, 0.01, 0.5, 0.51]]])
    table = rope.table(points, torch.float32)
    q, k = table.rotate(q), table.rotate(k)
    torch.testing.assert_close(q.norm(dim=-1), q.norm(dim=-1)[:, :1].expand(1, 4))
    dots = q @ k.transpose(1, 2)
    torch.testing.assert_close(dots[0, 0, 1], dots[0, 2, 3], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cross_attention_dim": 40}, "cross_attention_dim is 40, expected the stream's width, 32"),
        ({"audio_num_attention_heads": 4, "audio_attention_head_dim": 4}, "expected num_attention_heads, 2"),
        ({"qk_norm": "layer_norm"}, "qk_norm is 'layer_norm', expected 'rms_norm'"),
        ({"rope_type": "spiral"}, "rope_type is 'spiral'"),
        ({"_class_name": "UNet"}, "_class_name is 'UNet'"),
        ({"use_middle_indices_grid": False}, "use_middle_indices_grid is False"),
        ({"caption_proj_before_connector": False}, "no 'caption_channels'"),
    ],
)
def test_a_config_that_cannot_be_built_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of(OF_23 | change)


def test_a_missing_constant_or_section_is_refused() -> None:
    section = SECTION | OF_23
    del section["share_ff"]
    with pytest.raises(ConfigError, match="share_ff"):
        TransformerConfig.from_metadata({"transformer": section})
    with pytest.raises(ConfigError, match="'transformer'"):
        TransformerConfig.from_metadata({"vae": {}})


def test_inputs_that_do_not_fit_are_refused_by_name(model: LTXModel) -> None:
    video, audio = both(model, 2)
    video_only = LTXModel(model.config.with_streams("video"))
    for call, message in [
        (lambda: model(None, None), "neither video nor audio"),
        (lambda: video_only(None, audio), "audio is given to a model without it"),
        (lambda: model(video, audio.batch_slice(0, 1)), "batch sizes are video 2, audio 1"),
        (lambda: model(replace(video, latent=video.latent[:, :, :4])), "video latent has shape"),
        (lambda: model(replace(video, latent=video.latent[:, :0])), "video latent has shape"),
        (lambda: model(replace(video, timesteps=torch.ones(2, 5))), "video timesteps has shape"),
        (lambda: model(replace(video, sigma=torch.ones(3))), "video sigma has shape"),
        (lambda: model(replace(video, positions=audio.positions)), "video positions has shape"),
        (lambda: model(replace(video, positions=video.positions[..., 0])), "expected bounds"),
        (lambda: model(replace(video, context=video.context[..., 1:])), "video context has shape"),
        (lambda: model(video, audio, perturb([])), "perturbations are for 1 samples, expected 2"),
    ]:
        with pytest.raises(ConfigError, match=message):
            call()


def test_perturbation_masks_go_round() -> None:
    config = perturb([], [(SKIP.SKIP_VIDEO_SELF_ATTN, [1]), (SKIP.SKIP_A2V_CROSS_ATTN, None)])
    masks = config.masks(num_blocks=3)
    assert masks.shape == (4, 3, 2) and masks.dtype == torch.bool
    assert (~masks).nonzero().tolist() == [[0, 1, 1], [2, 0, 1], [2, 1, 1], [2, 2, 1]]
    again = BatchedPerturbationConfig.from_masks(masks)
    assert torch.equal(again.masks(), masks)
    assert again.any_in_batch(SKIP.SKIP_VIDEO_SELF_ATTN, 1) and not again.all_in_batch(SKIP.SKIP_VIDEO_SELF_ATTN, 1)
    assert again.batch_slice(1, 2).all_in_batch(SKIP.SKIP_A2V_CROSS_ATTN, 2)
    assert config.mask(SKIP.SKIP_A2V_CROSS_ATTN, 0).tolist() == [[[True]], [[False]]]


def test_empty_perturbations_perturb_nothing_and_need_no_block_count(model: LTXModel) -> None:
    video, audio = both(model, 2)
    empty = BatchedPerturbationConfig.empty(batch_size=2)
    assert_same(model(video, audio, empty), model(video, audio), atol=0)
    with pytest.raises(ConfigError, match="num_blocks"):
        empty.masks()


def test_an_unknown_skip_strategy_is_refused() -> None:
    with pytest.raises(ConfigError, match="attention_values"):
        BatchedPerturbationConfig.from_skip_mask(torch.ones(2, 1), "attention_values_")
