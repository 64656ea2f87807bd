"""Captions for clips that have none; the same as ``ltx dataset caption``.

python caption_videos.py clips/ --output dataset.json
"""

import typer

from ltx_trainer.cli import caption

if __name__ == "__main__":
    typer.run(caption)
