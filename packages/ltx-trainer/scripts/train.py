"""Train from a YAML configuration: ``python train.py CONFIG`` or ``accelerate launch train.py CONFIG``."""

from ltx_trainer.train_cli import app

if __name__ == "__main__":
    app()
