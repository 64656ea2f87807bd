"""Text encoder: tokenizer, Gemma, feature extractors, connectors, whole prompts, enhancement, duration head, T5."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ltx_core.loader import Checkpoint
from ltx_core.loader.safetensors_file import SafetensorsFile
from ltx_core.loader.weights import fill
from ltx_core.model.duration_head.config import DurationHeadConfig
from ltx_core.model.duration_head.model import DurationHead, seconds_to_frames
from ltx_core.text_encoders.gemma.assets import GemmaAssets
from ltx_core.text_encoders.gemma.backbone import load_backbone
from ltx_core.text_encoders.gemma.config import ConnectorConfig, EmbeddingsConfig, FeatureExtractorConfig
from ltx_core.text_encoders.gemma.embeddings import Embeddings1DConnector, EmbeddingsProcessor, sort_valid_first
from ltx_core.text_encoders.gemma.encoder import AVGemmaTextEncoderModel, load_text_encoder, load_tokenizer
from ltx_core.text_encoders.gemma.enhance import Decoding, clean_response, load_enhancer, shrink_image
from ltx_core.text_encoders.gemma.feature_extractor import FeatureExtractor, PromptFeatures
from ltx_core.text_encoders.gemma.tokenizer import TokenBatch
from ltx_core.text_encoders.t5 import load_t5_encoder, t5_config
from tests.golden.case import Case
from tests.golden.operations import Operation

Results = dict[str, Tensor]


def known(case: Case, results: Mapping[str, Tensor | None]) -> Results:
    """Only what the case holds too."""
    return {name: tensor for name, tensor in results.items() if tensor is not None and name in case.tensors}


def tokenize(case: Case) -> Results:
    tokenizer = load_tokenizer(GemmaAssets.open(case.directory / case.args["gemma_dir"]), case.args["max_length"])
    tokens = tokenizer(case.args["prompts"])
    return {"out.input_ids": tokens.input_ids, "out.attention_mask": tokens.attention_mask}


def hidden_states(case: Case) -> Results:
    dtype = getattr(torch, case.args.get("dtype", "float32"))
    backbone = load_backbone(GemmaAssets.open(case.directory / case.args["gemma_dir"]), dtype)
    tokens = TokenBatch(case.inputs["input_ids"], case.inputs["attention_mask"])
    return {"out.hidden_states": unpack(backbone.hidden_states(tokens), tokens.attention_mask)}


def unpack(states: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Packed states ``[n, D]`` to ``[L, B, T, D]`` with zeros where there is no token."""
    padded = torch.zeros(len(states), *mask.shape, states[0].shape[-1], dtype=states[0].dtype)
    padded[:, mask.bool()] = torch.stack(list(states))
    return padded


def extract_features(case: Case) -> Results:
    states, mask = case.inputs["hidden_states"], case.inputs["attention_mask"]
    gemma = {"hidden_size": states.shape[-1], "num_hidden_layers": len(states) - 1}
    checkpoint = Checkpoint.open(case.weights_path)
    stored = checkpoint.weights("embeddings").state_dict()
    weights = {name.removeprefix("feature_extractor."): tensor for name, tensor in stored.items()}
    config = FeatureExtractorConfig.from_metadata(checkpoint.config, gemma)
    if config.per_token and "audio_aggregate_embed.weight" not in weights:
        config = replace(config, audio_width=None)
    with torch.device("meta"):
        extractor = FeatureExtractor(config)
    fill(extractor, weights)
    packed = [state[mask.bool()] for state in states]
    features = extractor(packed, mask)
    normed = [extractor.normalize(state, mask.sum(1).tolist()) for state in packed]
    results = {
        "out.video_features": features.video,
        "out.audio_features": features.audio,
        "mid.normed": unpack(normed, mask).permute(1, 2, 3, 0).flatten(2),
    }
    return known(case, results)


def create_embeddings(case: Case) -> Results:
    checkpoint = Checkpoint.open(case.weights_path)
    config = EmbeddingsConfig.connectors_from_metadata(checkpoint.config)
    audio = case.inputs.get("audio_features")
    with torch.device("meta"):
        processor = EmbeddingsProcessor(config if audio is not None else config.video_only())
    fill(processor, checkpoint.weights("embeddings").state_dict())
    features = PromptFeatures(case.inputs["video_features"], audio, case.inputs["attention_mask"])
    output = processor(features)
    results = {f"out.{name}": tensor for name, tensor in output._asdict().items()}
    rows, mask = case.args.get("mid_rows", []), features.attention_mask
    results |= connector_parts(case, "video", processor.video_connector, features.video[rows], mask[rows])
    if audio is not None and processor.audio_connector is not None:
        results |= connector_parts(case, "audio", processor.audio_connector, audio[rows], mask[rows])
    results["mid.sort_index"] = sort_valid_first(mask.bool())
    results["mid.connector_mask"] = reorder(features.video, mask)[0]
    return known(case, results)


def connect(case: Case) -> Results:
    checkpoint = Checkpoint.open(case.weights_path)
    config = ConnectorConfig.from_metadata(checkpoint.config)
    weights = checkpoint.weights("embeddings").state_dict()
    with torch.device("meta"):
        processor = EmbeddingsProcessor(EmbeddingsConfig(None, config, None))
    fill(processor, weights)
    features, mask = case.inputs["features"], case.inputs["attention_mask"]
    output = processor(PromptFeatures(features, None, mask))
    valid, x = reorder(features, mask)
    connected, valid_after = processor.video_connector(x, valid)
    results = {
        "out.connector": connected,
        "out.context": output.video_context,
        "out.valid_after_connector": valid_after,
        "out.context_mask": output.attention_mask,
        "mid.sort_index": sort_valid_first(mask.bool()),
        **connector_parts(case, "video", processor.video_connector, features, mask),
    }
    return known(case, results)


def reorder(features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(validity, features), valid tokens first."""
    order = sort_valid_first(mask.bool())
    return mask.bool().gather(1, order), features.gather(1, order[..., None].expand_as(features))


def connector_parts(case: Case, name: str, connector: Embeddings1DConnector, features: Tensor, mask: Tensor) -> Results:
    """What one connector computes on its way, where the case has it."""
    results: Results = {}

    def keep(part: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: object, output: Tensor) -> None:
            results[f"mid.{name}_{part}"] = output

        return hook

    valid, x = reorder(features, mask)
    blocks = connector.transformer_1d_blocks
    watched = {"block0": blocks[0], "block0_attn": blocks[0].get_submodule("attn1"), "last_block": blocks[-1]}
    handles = [module.register_forward_hook(keep(part)) for part, module in watched.items()]
    connector(x, valid)
    for handle in handles:
        handle.remove()
    if connector.config.num_registers is not None:
        results[f"mid.{name}_after_registers"] = connector.fill_with_registers(x, valid)
    positions = case.tensors.get(f"mid.{name}_rope_positions")
    if positions is not None:
        table = connector.rope_table(x.shape[1], x.dtype)
        results[f"mid.{name}_rope_cos"] = table.cos.index_select(-2, positions)
        results[f"mid.{name}_rope_sin"] = table.sin.index_select(-2, positions)
    return known(case, results)


def prompt_to_contexts(case: Case) -> Results:
    if "gemma_dir" in case.args:
        gemma, weights = case.directory / case.args["gemma_dir"], case.weights_path
    else:
        gemma, weights = (case.directory / case.args[name] for name in ("text_encoder_file", "transformer_file"))
    checkpoint = Checkpoint.open(weights)
    dtype = getattr(torch, case.args.get("dtype", "float32"))
    encoder = load_text_encoder(gemma, checkpoint, dtype, max_length=case.args["max_length"])
    assert isinstance(encoder, AVGemmaTextEncoderModel)
    tokens = encoder.tokenizer(case.args["prompts"])
    for name, got in vars(tokens).items():
        assert torch.equal(got, case.inputs[name]), f"{name} differs"
    output, features = encoder(case.args["prompts"]), encoder.features(case.args["prompts"])
    tail = int(tokens.attention_mask.sum(1).max())
    states = unpack(encoder.backbone.hidden_states(tokens), tokens.attention_mask)
    assert features.audio is not None
    results = {
        **{f"out.{name}": tensor for name, tensor in output._asdict().items()},
        "mid.hidden_states_tail": states[:, :, -tail:],
        "mid.video_features_tail": features.video[:, -tail:],
        "mid.audio_features_tail": features.audio[:, -tail:],
    }
    return known(case, results)


def predict_seconds(case: Case) -> Results:
    checkpoint = Checkpoint.open(case.weights_path)
    with torch.device("meta"):
        head = DurationHead(DurationHeadConfig.from_metadata(checkpoint.config))
    fill(head, checkpoint.weights("duration_head").state_dict())
    contexts = (case.inputs.get("video_tokens"), case.inputs.get("audio_tokens"))
    tokens = head.tokens(*contexts)
    shown = case.tensors["mid.tokens"].shape[1] if "mid.tokens" in case.tensors else 0
    results = {
        "out.seconds": head(*contexts),
        "mid.tokens": tokens[:, :shown],
        "mid.pooled": head.attention_pooler(tokens),
    }
    return known(case, results)


def count_frames(case: Case) -> Results:
    names = ("seconds", "frame_rate", "min_seconds", "max_seconds")
    rows = zip(*(case.inputs[name].tolist() for name in names), strict=True)
    frames = [seconds_to_frames(*row) for row in rows]
    assert frames == [row["num_frames"] for row in case.args["rows"]]
    return {"out.num_frames": torch.tensor(frames)}


def clean(case: Case) -> Results:
    rows = case.args["rows"]
    for row in rows:
        assert clean_response(row["in"]) == row["out"]
    return {"out.count": torch.tensor(len(rows))}


def enhance(case: Case) -> Results:
    args, image = case.args, case.inputs.get("image")
    match = re.match(r"greedy, no_repeat_ngram_size=(\d+)", args["decoding"])
    assert match, f"decoding {args['decoding']} is random"
    decoding = Decoding(args["max_new_tokens"], no_repeat_ngram_size=int(match[1]))
    folder = case.directory / args["gemma_dir"]
    enhancer = load_enhancer(folder, torch.float32, images=image is not None, decoding=decoding)
    small = None if image is None else shrink_image(image, args["image_long_side"])
    inputs = enhancer.prepare(args["prompt"], args["system_prompt"], small)
    ids = enhancer.generate(inputs, seed=0)
    assert enhancer.tokenizer.decode(ids[0], skip_special_tokens=True) == args["text"]
    assert enhancer.respond(inputs, seed=0) == args["cleaned"]
    results = {**inputs, "generated_ids": ids} | ({} if small is None else {"image_resized": small})
    return {f"out.{name}": tensor for name, tensor in results.items() if f"out.{name}" in case.tensors}


def encode_t5(case: Case) -> Results:
    config = t5_config(json.loads(SafetensorsFile(case.weights_path).metadata["config"]))
    encoder = load_t5_encoder(config, [case.weights_path], torch.float32)
    ids, mask = case.inputs["input_ids"], case.inputs["attention_mask"]
    first = encoder.get_submodule("encoder.block.0.layer.0.SelfAttention")
    results = {
        "out.embeds": encoder(ids, mask).last_hidden_state,
        "out.embeds_without_mask": encoder(ids).last_hidden_state,
        "mid.position_bias": first.compute_bias(ids.shape[1], ids.shape[1]),
    }
    return known(case, results)


OPERATIONS: dict[tuple[str, str], Operation] = {
    ("text_encoder.tokenizer", "tokenize"): tokenize,
    ("text_encoder.gemma_backbone", "hidden_states"): hidden_states,
    ("text_encoder.feature_extractor", "v1"): extract_features,
    ("text_encoder.feature_extractor", "v2"): extract_features,
    ("text_encoder.embeddings_processor", "create_embeddings"): create_embeddings,
    ("text_encoder.connector", "connector"): connect,
    ("text_encoder", "prompt_to_contexts"): prompt_to_contexts,
    ("text_encoder.enhance", "clean_response"): clean,
    ("text_encoder.enhance", "enhance_t2v"): enhance,
    ("text_encoder.enhance", "enhance_i2v"): enhance,
    ("t5_encoder", "forward"): encode_t5,
    ("duration_head", "forward"): predict_seconds,
    ("duration_head", "seconds_to_frames"): count_frames,
}
