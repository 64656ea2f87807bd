"""Sound for LTX-Video: an audio stream beside the video's and attentions between them, in a file of its own.

The network is the one of LTX-2 (`block.py`), whose audio stream stands in the blocks that the adapter names::

    audio tokens --> self-attention, text, gate * attention to the picture, feed-forward --> velocity of the sound
    video tokens --> the model's own ..., gate * attention to the sound, ................... --> velocity of the picture

Rotary positions of the attentions between them are seconds on both sides. Their gates are zero at first: the picture is
then bit for bit that of the model without an adapter. The text is the video's.

A file holds ``audio_adapter.<name in LTXModel>`` and, in its config, the section ``audio_adapter``::

    attention_head_dim             channels of a head; there are as many heads as the video has
    in_channels, out_channels      of an audio token, 128
    positional_embedding_max_pos   seconds that are scaled to 1; those of the video where it is not given
    blocks                         those with sound; null: all
"""

from __future__ import annotations

import torch
from torch import Tensor

from ltx_core.model.common.meter import without_data
from ltx_core.model.transformer.block import CROSS_GATE
from ltx_core.model.transformer.config import TransformerConfig, is_adapter_tensor
from ltx_core.model.transformer.model import LTXModel

GATES = ("av_ca_a2v_gate_adaln_single.linear", "av_ca_v2a_gate_adaln_single.linear")


def add_audio(video: LTXModel, config: TransformerConfig, seed: int = 0) -> LTXModel:
    """``video`` with a fresh audio stream as ``config`` has it, which alone requires gradients.

    The video's parameters share their memory.
    """
    with without_data():
        network = LTXModel(config)
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = dict(video.state_dict())
    for name, tensor in network.state_dict().items():
        if is_adapter_tensor(name):
            state[name] = initial(name, tuple(tensor.shape), generator)
    network.load_state_dict(state, assign=True)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(is_adapter_tensor(name))
    return network


def initial(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """The first value of an adapter's tensor, float32."""
    if name.startswith(GATES) or name.endswith("bias"):
        return torch.zeros(shape)
    if name.endswith(("q_norm.weight", "k_norm.weight")):
        return torch.ones(shape)
    if "scale_shift_table" in name:
        table = torch.randn(shape, generator=generator) * shape[-1] ** -0.5
        if "a2v" in name:
            table[CROSS_GATE:] = 0
        return table
    bound = shape[-1] ** -0.5
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)
