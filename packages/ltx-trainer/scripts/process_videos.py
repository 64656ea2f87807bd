"""Videos and pictures to latents; the same as ``ltx dataset videos``.

python process_videos.py data.csv --model-path ... --resolution-buckets 960x544x49
"""

import typer

from ltx_trainer.cli import videos

if __name__ == "__main__":
    typer.run(videos)
