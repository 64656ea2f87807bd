"""Write a short prompt out in full before it is used, with a chat model that may also see the first picture."""

from __future__ import annotations

from ltx_core.errors import CheckpointError
from ltx_core.text_encoders.gemma.enhance import load_enhancer
from ltx_pipelines.utils.media_io import decode_image
from ltx_pipelines.utils.model_ledger import ModelLedger


def enhanced_prompt(
    prompt: str, ledger: ModelLedger, image: str | None = None, folder: str | None = None, seed: int = 10
) -> str:
    """``prompt`` rewritten by the Gemma in ``folder``, by default the ledger's own text encoder.

    The chat model is loaded for this call alone, before any other large network. The same seed gives the same text.
    Raises `CheckpointError` for encoders that cannot chat: those need ``folder``.
    """
    if (path := folder or ledger.files.text_encoder) is None:
        raise CheckpointError("no language model to enhance the prompt with, expected --prompt-enhancer-gemma-root")
    if ledger.policy != "resident":
        ledger.release()
    enhancer = load_enhancer(path, ledger.precision, ledger.device, images=image is not None)
    if image is None:
        return enhancer.enhance_t2v(prompt, seed=seed)
    return enhancer.enhance_i2v(prompt, decode_image(image), seed=seed)
