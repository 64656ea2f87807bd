"""Prompts to contexts: the shortcuts against the long way round, layouts, and what is said when files do not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests.tiny_text_encoders import (
    CONFIGS,
    GEMMA3,
    PER_PROMPT,
    PER_TOKEN,
    TEXT,
    TOKENIZER_CONFIG,
    language_model,
    tokenizer_json,
    write_checkpoint,
    write_gemma,
    write_split_pack,
)

from ltx_core.errors import CheckpointError, ConfigError
from ltx_core.loader import Checkpoint
from ltx_core.model.duration_head.config import DurationHeadConfig
from ltx_core.model.duration_head.model import DurationHead, predict_num_frames, seconds_to_frames
from ltx_core.text_encoders.gemma import feature_extractor
from ltx_core.text_encoders.gemma.assets import GemmaAssets
from ltx_core.text_encoders.gemma.backbone import load_backbone
from ltx_core.text_encoders.gemma.config import ConnectorConfig, EmbeddingsConfig, FeatureExtractorConfig
from ltx_core.text_encoders.gemma.embeddings import Embeddings1DConnector, EmbeddingsProcessor
from ltx_core.text_encoders.gemma.encoder import load_text_encoder
from ltx_core.text_encoders.gemma.enhance import (
    clean_response,
    load_enhancer,
    pad_left,
    read_system_prompt,
    shrink_image,
)
from ltx_core.text_encoders.gemma.feature_extractor import FeatureExtractor, PromptFeatures
from ltx_core.text_encoders.gemma.tokenizer import GemmaTokenizer, TokenBatch
from ltx_core.text_encoders.t5 import load_t5, load_t5_encoder, t5_config

PROMPTS = ["a red boat drifts past the harbour wall while gulls cry", "rain", ""]
MASK = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0, 0, 0, 1], [1] * 10])


# Language model -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", CONFIGS)
def test_states_of_valid_tokens_are_those_of_transformers_for_a_padded_batch(family: str, tmp_path: Path) -> None:
    model = language_model(family)
    backbone = load_backbone(GemmaAssets.open(write_gemma(tmp_path / "gemma", family)), torch.float32)
    ids = torch.randint(4, 30, MASK.shape, generator=torch.Generator().manual_seed(0)) * MASK
    padded = model(input_ids=ids, attention_mask=MASK, output_hidden_states=True).hidden_states
    states = backbone.hidden_states(TokenBatch(ids, MASK))
    assert len(states) == len(padded) == TEXT["num_hidden_layers"] + 1
    for state, full in zip(states, padded, strict=True):
        torch.testing.assert_close(state, full[MASK.bool()], rtol=1e-4, atol=1e-4)


def test_both_styles_of_gemma3_config_are_one_model(tmp_path: Path) -> None:
    folder = write_gemma(tmp_path / "gemma")
    old = load_backbone(GemmaAssets.open(folder), torch.float32)
    text = {
        name: value for name, value in GEMMA3["text_config"].items() if not name.startswith(("rope", "sliding_wind"))
    }
    text |= {
        "sliding_window": TEXT["sliding_window"],
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    }
    (folder / "config.json").write_text(json.dumps({**GEMMA3, "text_config": text}))
    new = load_backbone(GemmaAssets.open(folder), torch.float32)
    tokens = TokenBatch(torch.arange(12)[None], torch.ones(1, 12, dtype=torch.int64))
    for one, other in zip(old.hidden_states(tokens), new.hidden_states(tokens), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("with_bos", [True, False])
def test_tokenizer_keeps_the_head_behind_one_bos(with_bos: bool) -> None:
    tokenizer = GemmaTokenizer(tokenizer_json(with_bos), TOKENIZER_CONFIG, max_length=4)
    tokens = tokenizer(["a red boat drifts past", " boat \n", "  "])
    assert tokens.input_ids.tolist() == [[2, 4, 5, 6], [0, 0, 2, 6], [0, 0, 0, 2]]
    assert tokens.attention_mask.tolist() == [[1, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]]


def test_tokenizer_needs_a_bos_and_pads_with_eos_without_a_pad() -> None:
    with pytest.raises(CheckpointError, match="bos_token None"):
        GemmaTokenizer(tokenizer_json(), {"eos_token": "<eos>"})
    tokenizer = GemmaTokenizer(tokenizer_json(), {"bos_token": {"content": "<bos>"}, "eos_token": "<eos>"}, 3)
    assert tokenizer("boat").input_ids.tolist() == [[1, 2, 6]]


@pytest.mark.parametrize(("own_limit", "length"), [(3, 3), (10**30, 4), (1e30, 4), (None, 4)])
def test_tokenizer_pads_to_its_own_limit_where_that_is_less(own_limit: float | None, length: int) -> None:
    tokenizer = GemmaTokenizer(tokenizer_json(), {**TOKENIZER_CONFIG, "model_max_length": own_limit}, max_length=4)
    assert tokenizer("boat").input_ids.shape == (1, length)


def test_tokenizer_without_room_for_a_token_is_refused() -> None:
    with pytest.raises(CheckpointError, match="model_max_length 0"):
        GemmaTokenizer(tokenizer_json(), {**TOKENIZER_CONFIG, "model_max_length": 0})


# Feature extractor and connectors -------------------------------------------------------------------------------------


def materialised(extractor: FeatureExtractor, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Video features by the formula over all layers at once; ``states`` is ``[L, B, T, D]``."""
    x, valid = states.permute(1, 2, 3, 0), mask.bool()  # [B, T, D, L]
    rows = torch.zeros_like(x)
    for index, row in enumerate(valid):
        tokens = x[index, row]
        if extractor.config.per_token:
            rows[index, row] = tokens / (tokens.square().mean(1, keepdim=True) + 1e-6).sqrt()
        else:
            low, high = tokens.amin((0, 1)), tokens.amax((0, 1))
            rows[index, row] = 8 * (tokens - tokens.mean((0, 1))) / (high - low + 1e-6)
    if not extractor.config.per_token:
        return extractor.aggregate_embed(rows.flatten(2))
    scale = (extractor.config.video_width / extractor.config.hidden_size) ** 0.5
    return extractor.video_aggregate_embed(rows.flatten(2) * scale)


@pytest.mark.parametrize("layers_at_once", [1, 3, 7])
@pytest.mark.parametrize("config", [PER_PROMPT, PER_TOKEN], ids=["per prompt", "per token"])
def test_features_do_not_depend_on_how_many_layers_wait(
    config: dict[str, Any], layers_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_extractor, "BUFFER_BYTES", layers_at_once * int(MASK.sum()) * TEXT["hidden_size"] * 4)
    torch.manual_seed(0)
    extractor = FeatureExtractor(FeatureExtractorConfig.from_metadata(config, TEXT)).requires_grad_(False)
    states = torch.randn(7, *MASK.shape, TEXT["hidden_size"])
    states[:, ~MASK.bool()] = float("inf")
    features = extractor((state[MASK.bool()] for state in states), MASK)
    torch.testing.assert_close(features.video, materialised(extractor, states, MASK), rtol=1e-4, atol=1e-5)


def test_a_checkpoint_without_audio_heads_has_video_features_only() -> None:
    section = {key: value for key, value in PER_TOKEN["transformer"].items() if not key.startswith("audio_")}
    config = EmbeddingsConfig.from_metadata({"transformer": section}, TEXT)
    assert config == EmbeddingsConfig.from_metadata(PER_TOKEN, TEXT).video_only()


def test_feature_extractor_refuses_another_language_model() -> None:
    extractor = FeatureExtractor(FeatureExtractorConfig.from_metadata(PER_TOKEN, TEXT))
    states = [torch.zeros(3, TEXT["hidden_size"])] * 5
    with pytest.raises(ConfigError, match="got 5 states, expected 7"):
        extractor(states, torch.ones(1, 3, dtype=torch.int64))


def test_registers_take_their_slot_and_valid_tokens_come_first() -> None:
    config = EmbeddingsConfig.connectors_from_metadata(PER_TOKEN)
    torch.manual_seed(0)
    processor = EmbeddingsProcessor(config).requires_grad_(False)
    mask = torch.zeros(2, 256, dtype=torch.int64)
    mask[0, -3:] = 1  # left-padded
    mask[1, :3] = 1  # right-padded
    video, audio = torch.randn(1, 3, 24), torch.randn(1, 3, 8)
    rows = [torch.randn(2, 256, width) for width in (24, 8)]
    for row, part in zip(rows, (video, audio), strict=True):
        row[0, -3:] = row[1, :3] = part[0]
    seen: list[torch.Tensor] = []
    processor.video_connector.transformer_1d_blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    output = processor(PromptFeatures(rows[0], rows[1], mask))
    filled, registers = seen[0], processor.video_connector.learnable_registers
    assert torch.equal(filled[0, :3], video[0]) and torch.equal(filled[1, :3], video[0])
    assert torch.equal(filled[0, 3:128], registers[3:]) and torch.equal(filled[0, 128:], registers)
    for context in (output.video_context, output.audio_context):
        torch.testing.assert_close(context[0], context[1])
    assert output.attention_mask.all()


def test_connector_without_registers_hides_padding() -> None:
    connector = Embeddings1DConnector(ConnectorConfig(2, 4, 2, num_registers=None)).requires_grad_(False)
    x, valid = torch.randn(1, 6, 8), torch.tensor([[True, True, True, False, False, False]])
    whole, still_valid = connector(x, valid)
    alone, _ = connector(x[:, :3], valid[:, :3])
    torch.testing.assert_close(whole[:, :3], alone)
    assert torch.equal(still_valid, valid)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"caption_proj_input_norm": True}, "expected none of these keys or exactly"),
        ({"connector_num_attention_heads": 3}, "video features are 24 wide, their connector expects 36"),
        ({"rope_type": "spiral"}, "rope_type is 'spiral'"),
        ({"connector_num_layers": -1}, "connector_num_layers is -1"),
    ],
)
def test_config_says_what_contradicts(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EmbeddingsConfig.from_metadata({"transformer": PER_TOKEN["transformer"] | change}, TEXT)


def test_length_must_hold_whole_sets_of_registers() -> None:
    connector = Embeddings1DConnector(ConnectorConfig(2, 4, 1))
    with pytest.raises(ConfigError, match="100 tokens, expected a multiple of 128"):
        connector(torch.zeros(1, 100, 8), torch.ones(1, 100, dtype=torch.bool))


# Whole encoder --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [PER_PROMPT, PER_TOKEN], ids=["19B", "2.3"])
def test_prompts_to_contexts(config: dict[str, Any], tmp_path: Path) -> None:
    gemma = write_gemma(tmp_path / "gemma")
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "model.safetensors", config))
    encoder = load_text_encoder(gemma, checkpoint, torch.float32, max_length=128)
    video, audio, mask = encoder(PROMPTS)
    widths = {"19B": (16, 16), "2.3": (24, 8)}["19B" if config is PER_PROMPT else "2.3"]
    assert (video.shape[2], audio.shape[2]) == widths and mask.tolist() == [[1] * 128] * 3
    for index, prompt in enumerate(PROMPTS):
        alone = encoder(f"  {prompt}\n")
        torch.testing.assert_close(alone.video_context[0], video[index], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(alone.audio_context[0], audio[index], rtol=1e-4, atol=1e-4)
    assert encoder("rain", dtype=torch.bfloat16).video_context.dtype == torch.bfloat16
    video_only = load_text_encoder(gemma, checkpoint, torch.float32, audio=False, max_length=128)(PROMPTS)
    torch.testing.assert_close(video_only.video_context, video)
    with pytest.raises(ConfigError, match="no prompt"):
        encoder([])


def test_a_streamed_language_model_gives_what_a_resident_one_does(tmp_path: Path) -> None:
    gemma = write_gemma(tmp_path / "gemma")
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "model.safetensors", PER_TOKEN))
    streamed = load_text_encoder(gemma, checkpoint, torch.float32, max_length=128, hold="file")
    layers = streamed.backbone.layers
    assert all(parameter.is_meta for parameter in layers.parameters()), "read before they compute"
    resident = load_text_encoder(gemma, checkpoint, torch.float32, max_length=128)
    for prompts in (PROMPTS, PROMPTS[:1]):
        for one, other in zip(streamed(prompts), resident(prompts), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    held = {parameter.untyped_storage().data_ptr() for parameter in layers.parameters() if not parameter.is_meta}
    assert len(held) == 2, "two layers at a time, each in a buffer of its own"


def test_a_packed_file_encodes_as_its_folder(tmp_path: Path) -> None:
    transformer, packed = write_split_pack(tmp_path)
    folder = write_gemma(tmp_path / "gemma", "gemma4_unified")
    from_pack = load_text_encoder(packed, Checkpoint.open(transformer), torch.float32, max_length=128)
    both = Checkpoint.open((transformer, packed))
    from_folder = load_text_encoder(folder, both, torch.float32, max_length=128)
    for one, other in zip(from_pack(PROMPTS), from_folder(PROMPTS), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(CheckpointError, match="holds no text_embedding_projection; give the packed"):
        load_text_encoder(folder, Checkpoint.open(transformer))


def test_a_checkpoint_refuses_another_text_encoder(tmp_path: Path) -> None:
    folder = write_gemma(tmp_path / "gemma", "gemma4_unified")
    older = Checkpoint.open(write_checkpoint(tmp_path / "old.safetensors", PER_TOKEN, model_version="2.3.0"))
    with pytest.raises(CheckpointError, match=r"'gemma4_unified', checkpoint '2\.3\.0' expects 'gemma3'"):
        load_text_encoder(folder, older)
    source = {"gemma_version": "other"}
    newer = write_checkpoint(
        tmp_path / "new.safetensors", PER_TOKEN, model_version="2.5.0", gemma_source_checkpoint=source
    )
    with pytest.raises(CheckpointError, match="'tiny-v1', the checkpoint expects 'other'"):
        load_text_encoder(folder, Checkpoint.open(newer))


def rewrite(name: str, text: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).write_text(text)

    return apply


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def change_tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return apply


NORM = "language_model.model.norm.weight"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 33384568\n"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("config.json"), "has no config.json, expected a Gemma folder"),
        (without("tokenizer.json"), "has no tokenizer.json; download it from google/gemma-3"),
        (without("tokenizer_config.json"), "has no tokenizer_config.json"),
        (without("model.safetensors"), "has no model\\*.safetensors"),
        (rewrite("tokenizer.json", POINTER), "tokenizer.json is a Git LFS pointer.*git lfs pull"),
        (rewrite("model.safetensors", POINTER), "model.safetensors is a Git LFS pointer.*git lfs pull"),
        (rewrite("tokenizer.json", "{}"), "tokenizer.json cannot be read"),
        (rewrite("config.json", "[]"), "it is \\[\\], expected a JSON object"),
        (rewrite("config.json", '{"model_type": "llama"}'), "model_type 'llama', expected one of gemma3"),
        (change_tensors(lambda t: t.pop(NORM)), "does not fit a gemma3 decoder: 1 missing: norm.weight"),
        (
            change_tensors(lambda t: t.update({NORM: t[NORM][:8]})),
            "1 misshapen: norm.weight \\[8\\] instead of",
        ),
        (change_tensors(lambda t: t.update({NORM: t[NORM].to(torch.int8)})), "norm.weight is I8"),
        (change_tensors(lambda t: t.pop("language_model.model.embed_tokens.weight")), "has 0 embedding tables"),
    ],
)
def test_damaged_folders_are_told_in_one_line(damage: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    gemma = write_gemma(tmp_path / "gemma")
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "model.safetensors", PER_PROMPT))
    damage(gemma)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_text_encoder(gemma, checkpoint, torch.float32)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("https://huggingface.co/google/gemma-3-12b-it", "is a URL.*hf download"),
        ("hf://google/gemma-3-12b-it", "is a URL"),
        ("/nowhere/gemma", "not found: /nowhere/gemma"),
    ],
)
def test_wrong_paths(path: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        GemmaAssets.open(path)


def test_a_checkpoint_is_not_a_text_encoder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no gemma_config in its metadata"):
        GemmaAssets.open(write_checkpoint(tmp_path / "model.safetensors", PER_PROMPT))


# Enhancement ----------------------------------------------------------------------------------------------------------


def test_clean_response() -> None:
    assert clean_response("\n“Style: dark” — it’s\u00a0late") == "Style: dark\" - it's late"
    assert clean_response("12 …") == "12 …"


def test_inputs_are_padded_in_front_to_a_multiple_of_eight() -> None:
    inputs = {"input_ids": torch.ones(1, 9), "attention_mask": torch.ones(1, 9), "pixel_values": torch.ones(1, 3)}
    padded = pad_left(inputs, pad_id=7)
    assert padded["input_ids"].tolist() == [[7] * 7 + [1] * 9]
    assert padded["attention_mask"].tolist() == [[0] * 7 + [1] * 9] and padded["pixel_values"].shape == (1, 3)


@pytest.mark.parametrize(("height", "width"), [(40, 60), (61, 33), (64, 64)])
def test_images_shrink_to_their_long_side(height: int, width: int) -> None:
    image = torch.full((height, width, 3), 9, dtype=torch.uint8)
    small = shrink_image(image, 64)
    assert max(small.shape) == 64 and (small == 9).all()


def test_models_that_only_encode_cannot_enhance(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="gemma4_unified and only encodes"):
        load_enhancer(write_gemma(tmp_path / "gemma", "gemma4_unified"))


# Duration -------------------------------------------------------------------------------------------------------------


@given(st.floats(0, 100), st.sampled_from([23.976, 24.0, 25.0, 50.0]), st.floats(0.5, 5), st.floats(0.5, 20))
def test_frames_lie_on_the_grid_between_the_bounds(seconds: float, fps: float, least: float, span: float) -> None:
    frames = seconds_to_frames(seconds, fps, least, least + span)
    low, high = round(least * fps), round((least + span) * fps)
    assert low <= frames <= high
    assert frames % 8 == 1 or not any(n % 8 == 1 for n in range(low, high + 1))


def test_duration_head_reads_one_prompt() -> None:
    head = DurationHead(DurationHeadConfig(video_width=6, audio_width=4, pooler_hidden_dim=8)).requires_grad_(False)
    torch.nn.init.constant_(head.mlp_out.weight, 0)
    torch.nn.init.constant_(head.mlp_out.bias, 3.2).log_()
    assert predict_num_frames(head, torch.randn(1, 5, 6), None, 24.0) == 73
    with pytest.raises(ConfigError, match="got 2 prompts"):
        predict_num_frames(head, None, torch.randn(2, 5, 4), 24.0)
    with pytest.raises(ConfigError, match="no context"):
        head()


# T5 -------------------------------------------------------------------------------------------------------------------

T5 = {"d_model": 16, "d_kv": 4, "num_heads": 2, "d_ff": 24, "num_layers": 2, "vocab_size": 30}


def test_t5_is_filled_exactly(tmp_path: Path) -> None:
    import transformers

    torch.manual_seed(0)
    theirs = transformers.T5EncoderModel(t5_config(T5)).eval()
    state = {name: torch.randn_like(tensor) * 0.3 for name, tensor in theirs.state_dict().items()}
    state["encoder.embed_tokens.weight"] = state["shared.weight"].clone()
    save_file(state, tmp_path / "model.safetensors")
    ours = load_t5_encoder(t5_config(T5), [tmp_path / "model.safetensors"], torch.float32)
    assert all(torch.equal(tensor, state[name]) for name, tensor in ours.state_dict().items())
    del state["encoder.final_layer_norm.weight"]
    save_file(state, tmp_path / "broken.safetensors")
    with pytest.raises(CheckpointError, match=r"broken.*missing_keys.*final_layer_norm"):
        load_t5_encoder(t5_config(T5), [tmp_path / "broken.safetensors"], torch.float32)


def test_t5_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no text_encoder/config\.json; download PixArt"):
        load_t5(tmp_path)
    with pytest.raises(ConfigError, match="feed_forward_proj is 'relu'"):
        t5_config({"feed_forward_proj": "relu"})


@pytest.mark.parametrize("task", ["t2v", "i2v"])
@pytest.mark.parametrize("model_type", ["gemma3", "gemma4"])
def test_system_prompts_are_package_data(model_type: str, task: str) -> None:
    folder = files("ltx_core.text_encoders.gemma") / "prompts"
    assert (folder / f"gemma_{task}_system_prompt.txt").is_file()
    assert read_system_prompt(model_type, task).startswith("You write ")
