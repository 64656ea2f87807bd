"""Golden operations of the text encoder in MLX: backbones, features, connectors, prompts, duration head, T5."""

from __future__ import annotations

import json
from dataclasses import replace

import mlx.core as mx
import torch
from torch import Tensor

from ltx_core.loader import Checkpoint
from ltx_core.loader.safetensors_file import SafetensorsFile
from ltx_core.model.duration_head.config import DurationHeadConfig
from ltx_core.text_encoders.gemma.assets import GemmaAssets
from ltx_core.text_encoders.gemma.config import ConnectorConfig, EmbeddingsConfig, FeatureExtractorConfig
from ltx_core.text_encoders.gemma.tokenizer import TokenBatch
from ltx_core.text_encoders.t5 import t5_config
from ltx_mlx import embeddings as net
from ltx_mlx.arrays import to_mlx, to_torch
from ltx_mlx.duration_head import DurationHead
from ltx_mlx.text_encoder import load_backbone, load_gemma, load_t5_encoder
from ltx_mlx.weights import fill
from tests.golden.case import Case
from tests.golden.operations import Operation
from tests.golden.operations.text_encoder import known, reorder, unpack

Results = dict[str, Tensor]


def hidden_states(case: Case) -> Results:
    dtype = getattr(torch, case.args.get("dtype", "float32"))
    backbone = load_backbone(GemmaAssets.open(case.directory / case.args["gemma_dir"]), dtype)
    tokens = TokenBatch(case.inputs["input_ids"], case.inputs["attention_mask"])
    states = [to_torch(state) for state in backbone.hidden_states(tokens)]
    return {"out.hidden_states": unpack(states, tokens.attention_mask)}


def extract_features(case: Case) -> Results:
    states, mask = case.inputs["hidden_states"], case.inputs["attention_mask"]
    gemma = {"hidden_size": states.shape[-1], "num_hidden_layers": len(states) - 1}
    checkpoint = Checkpoint.open(case.weights_path)
    weights = {
        name.removeprefix("feature_extractor."): t for name, t in checkpoint.weights("embeddings").state_dict().items()
    }
    config = FeatureExtractorConfig.from_metadata(checkpoint.config, gemma)
    if config.per_token and "audio_aggregate_embed.weight" not in weights:
        config = replace(config, audio_width=None)
    extractor = fill(net.FeatureExtractor(config), weights.items())
    lengths = mask.sum(1).tolist()
    normed = [extractor.normalize(to_mlx(state[mask.bool()]), lengths) for state in states]
    video, audio = extractor(normed, mask)
    results = {
        "out.video_features": to_torch(video),
        "out.audio_features": None if audio is None else to_torch(audio),
        "mid.normed": unpack([to_torch(x) for x in normed], mask).permute(1, 2, 3, 0).flatten(2),
    }
    return known(case, results)


def create_embeddings(case: Case) -> Results:
    checkpoint = Checkpoint.open(case.weights_path)
    config = EmbeddingsConfig.connectors_from_metadata(checkpoint.config)
    audio, mask = case.inputs.get("audio_features"), case.inputs["attention_mask"]
    processor = net.EmbeddingsProcessor(config if audio is not None else config.video_only())
    fill(processor, checkpoint.weights("embeddings").state_dict().items())
    features = to_mlx(case.inputs["video_features"]), None if audio is None else to_mlx(audio)
    contexts = [None if part is None else to_torch(part) for part in processor(*features, mask)]
    results = {"out.video_context": contexts[0], "out.audio_context": contexts[1]}
    return known(case, results | {"out.attention_mask": torch.ones_like(mask)})


def connect(case: Case) -> Results:
    checkpoint = Checkpoint.open(case.weights_path)
    config = EmbeddingsConfig(None, ConnectorConfig.from_metadata(checkpoint.config), None)
    processor = fill(net.EmbeddingsProcessor(config), checkpoint.weights("embeddings").state_dict().items())
    features, mask = case.inputs["features"], case.inputs["attention_mask"]
    valid, x = reorder(features, mask)
    connected, valid_after = processor.video_connector(to_mlx(x), valid)
    results = {
        "out.connector": to_torch(connected),
        "out.context": to_torch(processor(to_mlx(features), None, mask)[0]),
        "out.valid_after_connector": valid_after,
        "out.context_mask": torch.ones_like(mask),
    }
    return known(case, results)


def prompt_to_contexts(case: Case) -> Results:
    if "gemma_dir" in case.args:
        gemma, weights = case.directory / case.args["gemma_dir"], case.weights_path
    else:
        gemma, weights = (case.directory / case.args[name] for name in ("text_encoder_file", "transformer_file"))
    dtype = getattr(torch, case.args.get("dtype", "float32"))
    encoder = load_gemma(gemma, Checkpoint.open(weights), dtype, max_length=case.args["max_length"])
    output = encoder(case.args["prompts"])
    return known(case, {f"out.{name}": tensor for name, tensor in output._asdict().items()})


def predict_seconds(case: Case) -> Results:
    checkpoint = Checkpoint.open(case.weights_path)
    head = DurationHead(DurationHeadConfig.from_metadata(checkpoint.config))
    fill(head, checkpoint.weights("duration_head").state_dict().items())
    return {"out.seconds": head(case.inputs.get("video_tokens"), case.inputs.get("audio_tokens"))}


def encode_t5(case: Case) -> Results:
    config = t5_config(json.loads(SafetensorsFile(case.weights_path).metadata["config"]))
    encoder = load_t5_encoder(config, [case.weights_path], torch.float32)
    ids, mask = case.inputs["input_ids"], case.inputs["attention_mask"]
    bias = encoder.position_bias(ids.shape[1]).astype(mx.float32)
    results = {"out.embeds": encoder(ids, mask), "out.embeds_without_mask": encoder(ids)}
    return known(case, results | {"mid.position_bias": to_torch(bias)})


OPERATIONS: dict[tuple[str, str], Operation] = {
    ("text_encoder.gemma_backbone", "hidden_states"): hidden_states,
    ("text_encoder.feature_extractor", "v1"): extract_features,
    ("text_encoder.feature_extractor", "v2"): extract_features,
    ("text_encoder.embeddings_processor", "create_embeddings"): create_embeddings,
    ("text_encoder.connector", "connector"): connect,
    ("text_encoder", "prompt_to_contexts"): prompt_to_contexts,
    ("t5_encoder", "forward"): encode_t5,
    ("duration_head", "forward"): predict_seconds,
}
#: Tokenizers and arithmetic; prompts are enhanced by transformers whatever the backend.
SHARED = {
    ("text_encoder.tokenizer", "tokenize"),
    ("text_encoder.enhance", "clean_response"),
    ("text_encoder.enhance", "enhance_t2v"),
    ("text_encoder.enhance", "enhance_i2v"),
    ("duration_head", "seconds_to_frames"),
}
