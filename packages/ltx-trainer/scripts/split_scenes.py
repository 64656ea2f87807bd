"""A long video to its scenes; the same as ``ltx dataset split-scenes``.

python split_scenes.py long.mp4 scenes/
"""

import typer

from ltx_trainer.cli import split_scenes_command

if __name__ == "__main__":
    typer.run(split_scenes_command)
