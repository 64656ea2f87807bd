"""Captions to records of text features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from ltx_core.text_encoders.gemma.feature_extractor import PromptFeatures
from ltx_core.text_encoders.t5 import T5TextEncoder
from ltx_trainer.datasets import EMPTY_CAPTION
from ltx_trainer.precomputed import Record, caption_record, read_inputs, write_record
from ltx_trainer.processing.captions import prompt_of
from ltx_trainer.processing.inputs import changed_inputs
from ltx_trainer.processing.metadata import Row
from ltx_trainer.processing.stage import Prepared, Stage, run_stage
from ltx_trainer.processing.workspace import Workspace

if TYPE_CHECKING:
    from ltx_core.text_encoders.gemma.encoder import GemmaTextEncoder

    TextEncoder = GemmaTextEncoder | T5TextEncoder


def run_caption_stage(rows: Sequence[Row], work: Workspace) -> None:
    """Captions to ``conditions``, and the empty caption beside them."""
    options = work.options

    def prepare(row: Row) -> Prepared:
        return prompt_of(row.caption, options.trigger, options.remove_openings), {}

    def encode(prompts: Sequence[str]) -> list[Record]:
        return list(caption_records(work.network("text_encoder"), prompts))

    empty = work.output / EMPTY_CAPTION
    made_of = {"model": work.print_of("text_encoder")}
    if options.overwrite or not empty.is_file() or changed_inputs(read_inputs(empty), made_of):
        write_record(empty, encode([""])[0], made_of)
    run_stage(Stage("conditions", prepare, encode, options.batch_size), rows, work)


def text_features(encoder: TextEncoder, prompts: list[str]) -> PromptFeatures:
    """Features of the valid tokens and their mask; with T5 both modalities read the same."""
    if isinstance(encoder, T5TextEncoder):
        output = encoder(prompts)
        return PromptFeatures(output.video_context, output.video_context, output.attention_mask)
    return encoder.features(prompts)


def caption_records(encoder: TextEncoder, prompts: Sequence[str]) -> Iterator[Record]:
    """Features before the connectors, of the valid tokens only; one tensor where both modalities share it."""
    features = text_features(encoder, list(prompts))
    if features.audio is features.video:
        tensors = {"prompt_embeds": features.video}
    else:
        both = {"video_prompt_embeds": features.video, "audio_prompt_embeds": features.audio}
        tensors = {name: tensor for name, tensor in both.items() if tensor is not None}
    tensors = {name: tensor.to("cpu", torch.bfloat16) for name, tensor in tensors.items()}
    for index, mask in enumerate(features.attention_mask.cpu()):
        yield caption_record({name: tensor[index] for name, tensor in tensors.items()}, mask)
