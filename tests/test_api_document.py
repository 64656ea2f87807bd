"""The program of `docs/api.md` runs, and gives pictures and sound of the documented shapes."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from tests.test_api_guide import Recorder, small_transformer, text_encoder

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "api.md"


def test_program_runs(capsys) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL)
    names = {
        "model": small_transformer(),
        "text_encoder": text_encoder,
        "vae_encoder": Recorder((1, 128, 1, 2, 3)),
        "vae_decoder": Recorder((1, 3, 9, 64, 96)),
        "audio_decoder": Recorder((1, 2, 33, 64)),
        "vocoder": Recorder((1, 2, 7920)),
        "image": torch.zeros(1, 3, 1, 64, 96),
        "prompt": "a bell rings twice",
        "device": torch.device("cpu"),
        "dtype": torch.float32,
    }
    with torch.no_grad():
        exec(compile(program, str(DOCUMENT), "exec"), names)
    assert names["vae_decoder"].given == [(1, 128, 2, 2, 3)]
    assert names["audio_decoder"].given == [(1, 8, 9, 16)]
    assert torch.isfinite(names["latents"]["video"]).all()
    assert "step 2 of 2" in capsys.readouterr().out
