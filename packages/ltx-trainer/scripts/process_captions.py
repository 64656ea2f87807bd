"""Captions to text features; the same as ``ltx dataset captions``.

python process_captions.py data.csv --model-path ... --text-encoder-path ...
"""

import typer

from ltx_trainer.cli import captions

if __name__ == "__main__":
    typer.run(captions)
