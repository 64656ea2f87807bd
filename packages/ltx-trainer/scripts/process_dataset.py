"""Captions, videos and sound to a precomputed data set; the same as ``ltx dataset process``.

python process_dataset.py data.csv --model-path ... --resolution-buckets 960x544x49
"""

import typer

from ltx_trainer.cli import process

if __name__ == "__main__":
    typer.run(process)
