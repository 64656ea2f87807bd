"""Precomputed latents to videos, to look at; the same as ``ltx dataset decode``.

python decode_latents.py .precomputed decoded --model-path ...
"""

import typer

from ltx_trainer.cli import decode_command

if __name__ == "__main__":
    typer.run(decode_command)
