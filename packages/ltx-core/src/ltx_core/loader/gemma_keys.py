"""Names of Gemma tensors: from each published layout to the state of a conditional-generation model held as ``.model``.

The output head shares the embedding table, so that tensor has two names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ltx_core.loader.sd_ops import KeyMap, SDOps, strip_prefixes

GemmaKeyMap = Callable[[str], tuple[str, ...]]

EMBEDDINGS = "model.model.language_model.embed_tokens.weight"
LANGUAGE_MODEL = "model.model.language_model."


def _with_head(keys: KeyMap) -> GemmaKeyMap:
    def rename(key: str) -> tuple[str, ...]:
        name = keys(key)
        if name is None:
            return ()
        return (name, "model.lm_head.weight") if name == EMBEDDINGS else (name,)

    return rename


def _prefixed(*parts: str) -> dict[str, str]:
    return {f"model.{part}.": f"model.model.{part}." for part in parts}


_FLAT = (
    SDOps("gemma4 unified, packed")
    .with_matching(prefix="model.")
    .with_matching(prefix="vision_model.")
    .with_matching(prefix="multi_modal_projector.")
    .with_matching(prefix="audio_projector.")
    .with_replacement("model.embed_tokens.", f"{LANGUAGE_MODEL}embed_tokens.")
    .with_replacement("model.layers.", f"{LANGUAGE_MODEL}layers.")
    .with_replacement("model.norm.", f"{LANGUAGE_MODEL}norm.")
    .with_replacement("model.embed_vision.", "model.model.embed_vision.multimodal_embedder.")
    .with_replacement("model.embed_audio.", "model.model.embed_audio.")
    .with_replacement("model.vision_embedder.", "model.model.embed_vision.")
    .with_replacement("vision_model.", "model.model.embed_vision.")
    .with_replacement("multi_modal_projector.embedding_", "model.model.embed_vision.multimodal_embedder.embedding_")
    .with_replacement("audio_projector.", "model.model.embed_audio.")
)

GEMMA_KEY_MAPS: Mapping[str, GemmaKeyMap] = {
    "gemma3": _with_head(
        strip_prefixes(
            {
                "language_model.model.": LANGUAGE_MODEL,
                "vision_tower.vision_model.": "model.model.vision_tower.",
                "multi_modal_projector.": "model.model.multi_modal_projector.",
            }
        )
    ),
    "gemma4_unified": _with_head(
        strip_prefixes(
            {
                **_prefixed("language_model", "embed_audio"),
                "model.vision_embedder.": "model.model.embed_vision.",
                "model.embed_vision.": "model.model.embed_vision.multimodal_embedder.",
                "model.": "model.",
            }
        )
    ),
    "gemma4_unified_flat": _with_head(_FLAT),
    "gemma4_dense": _with_head(
        strip_prefixes(
            {
                **_prefixed("language_model", "vision_tower", "audio_tower"),
                **_prefixed("embed_vision", "embed_audio", "multi_modal_projector"),
                "model.": "model.",
            }
        )
    ),
}
