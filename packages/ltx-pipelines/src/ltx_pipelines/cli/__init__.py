"""The `ltx` command. Nothing here imports torch before a command has been chosen and its options are understood."""


def main() -> int:
    """Run the command line of this process; the exit code."""
    from ltx_pipelines.cli.app import run

    return run()
