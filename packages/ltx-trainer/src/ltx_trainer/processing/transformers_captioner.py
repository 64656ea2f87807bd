"""A captioner that runs a vision (or vision and hearing) language model of `transformers` on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ltx_core.errors import ConfigError
from ltx_core.model.audio_vae.mel import resample, to_stereo
from ltx_core.precision import resolve
from ltx_media.audio import read_audio
from ltx_media.images import is_image
from ltx_media.video import read_frames_at
from ltx_trainer.processing.captioning import Captioner
from ltx_trainer.processing.captions import ANSWER_KEY, parse_answer

FRAMES_PER_SECOND = 2.0
MAX_FRAMES = 64
MAX_NEW_TOKENS = 4096
REPETITION_PENALTY = 1.05
HEARING_RATE = 16000  # Hz, mono
INSTRUCTION = (
    "Describe this clip for someone who can neither see nor hear it, in one detailed English paragraph: the kind of "
    "shots and camera movements, every person and what they look like and do, the place and its light, colours and "
    "style, all speech word for word in quotation marks with who says it and how, music and sounds in the order they "
    "are heard. Write what is there, not what it may mean. No headings, no lists. Answer with a JSON object whose only "
    f'key is "{ANSWER_KEY}".'
)
ADVICE = (
    "get one with `hf download Qwen/Qwen2.5-Omni-7B` (sees and hears, about 22 GB) or `hf download "
    "Qwen/Qwen2.5-VL-3B-Instruct` (sees only, about 8 GB) and name it with --model"
)


def transformers_captioner(
    model: str, device: str = "cpu", instruction: str = INSTRUCTION, max_new_tokens: int = MAX_NEW_TOKENS
) -> Captioner:
    """Load ``model``, a folder or the name of a downloaded repository, and return a captioner.

    Frames are shown two per second with their times; sound is played to models that can hear. Raises `ConfigError` with
    advice where no such model is installed.
    """
    processor, network = _load(model, device)

    def caption(path: Path) -> str:
        frames = _frames(path)
        sound = None if is_image(path) or not _hears(processor) else _sound(path)
        content: list[dict[str, Any]] = []
        for index, _ in enumerate(frames):
            content += [{"type": "text", "text": f"{index / FRAMES_PER_SECOND:.1f} s:"}, {"type": "image"}]
        content += [] if sound is None else [{"type": "audio"}]
        content.append({"type": "text", "text": instruction})
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        media: dict[str, Any] = {"images": frames} | ({} if sound is None else {"audio": [sound.numpy()]})
        inputs = processor(text=[prompt], return_tensors="pt", **media).to(device, network.dtype)
        with torch.inference_mode():
            answer = network.generate(
                **inputs, do_sample=False, repetition_penalty=REPETITION_PENALTY, max_new_tokens=max_new_tokens
            )
        tokens = answer[:, inputs["input_ids"].shape[1] :]
        return parse_answer(processor.batch_decode(tokens, skip_special_tokens=True)[0])

    return caption


def _load(model: str, device: str) -> tuple[Any, Any]:
    import transformers

    kind = getattr(transformers, "AutoModelForMultimodalLM", transformers.AutoModelForImageTextToText)
    dtype = resolve("auto", device).dtype
    try:
        processor = transformers.AutoProcessor.from_pretrained(model, local_files_only=True)
        network = kind.from_pretrained(model, local_files_only=True, dtype=dtype)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"no captioning model at {model} ({reason}): {ADVICE}") from error
    if not callable(getattr(processor, "apply_chat_template", None)) or not hasattr(processor, "image_processor"):
        raise ConfigError(f"{model} is no model that looks at pictures: {ADVICE}")
    return processor, network.to(device).eval()


def _frames(path: Path) -> list[Image.Image]:
    return [Image.fromarray(frame.numpy()) for frame in read_frames_at(path, FRAMES_PER_SECOND, MAX_FRAMES)]


def _hears(processor: Any) -> bool:
    return getattr(processor, "feature_extractor", None) is not None


def _sound(path: Path) -> Tensor | None:
    """The clip's sound as mono at the rate language models listen at."""
    audio = read_audio(path, duration=MAX_FRAMES / FRAMES_PER_SECOND)
    if audio is None:
        return None
    return resample(to_stereo(audio.waveform)[0].mean(dim=0), audio.sampling_rate, HEARING_RATE)
