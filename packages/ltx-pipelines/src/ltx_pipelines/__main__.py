"""`python -m ltx_pipelines` is the `ltx` command."""

from ltx_pipelines.cli.app import run

raise SystemExit(run())
