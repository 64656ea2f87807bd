"""``python -m ltx_mlx.generate "prompt" [--pipeline distilled] [options]``: the `ltx` command with MLX as its backend.

All options but ``--pipeline`` are those of the pipeline's own command, see ``ltx distilled --help``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ltx_core.errors import ConfigError

COMMANDS = {
    "distilled": "distilled",
    "text-to-video": "ti2vid-one-stage",
    "one-stage": "ti2vid-one-stage",
    "two-stage": "ti2vid-two-stages",
    "keyframe-interpolation": "keyframe-interpolation",
    "ic-lora": "ic-lora",
}


def main(arguments: Sequence[str]) -> int:
    """Run one line; the exit code."""
    from ltx_pipelines.cli.app import run

    try:
        command, line = split_pipeline(arguments)
    except ConfigError as error:
        print(f"ltx: {error}", file=sys.stderr)  # noqa: T201
        return 2
    return run([command, *line, "--backend", "mlx"])


def split_pipeline(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The command of ``--pipeline``, ``generate`` without, and the rest of the line."""
    line = [part for one in arguments for part in (one.split("=", 1) if one.startswith("--pipeline=") else [one])]
    if "--pipeline" not in line:
        return "generate", line
    place = line.index("--pipeline")
    name = line[place + 1] if place + 1 < len(line) else ""
    if name not in COMMANDS:
        raise ConfigError(f"--pipeline is {name!r}, expected one of {', '.join(COMMANDS)}")
    return COMMANDS[name], line[:place] + line[place + 2 :]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
