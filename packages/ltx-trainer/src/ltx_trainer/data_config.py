"""The ``data`` section of a configuration: which clips are learned from, how often, and how they are prepared."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

from ltx_core.textfiles import path_of
from ltx_trainer.training_strategies.config import Strict

PRECOMPUTED = ".precomputed"
TABLES = (".csv", ".json", ".jsonl")


class DataSetConfig(Strict):
    """Clips to learn from. A folder or a table is prepared when a run starts; what was prepared before is kept."""

    path: str
    """A folder of clips with a caption beside each (one.mp4, one.txt), a table, or a prepared directory."""
    repeats: PositiveInt = 1
    """How often every example is met in an epoch."""
    weight: PositiveFloat | None = None
    """This set's part in the batches, next to the weights of the others; null: by its size and repeats."""
    resolution: str = "768x512x49"
    """Width x height x frames that clips are brought to; several with ; between. F = 1 is for pictures."""
    fps: PositiveFloat | None = None
    """Frames per second that clips are brought to; null keeps their own."""
    trigger: str | None = None
    """A word put in front of every caption."""
    audio_durations: tuple[PositiveFloat, ...] = ()
    """Seconds that sound without pictures is brought to; empty keeps its length."""
    skip_audio: bool = False
    """Leave the sound of videos out."""
    long_clips: Literal["first", "chunks", "slide"] = "first"
    """Of clips longer than their size: the beginning; parts one after the other; parts every stride frames."""
    stride: PositiveInt | None = None
    """Frames from one part to the next with slide; null: half a part."""
    keyframes: tuple[int, ...] = ()
    """Frames of each clip that are encoded alone too, for keyframe_image; negative counts from the end."""
    control: str | None = None
    """Make references of the clips themselves: canny, downscale, blur, depth:FOLDER, pose:FOLDER, or another."""
    reference_downscale_factor: PositiveInt = 1
    """References are this much smaller than their clips."""

    @field_validator("path")
    @classmethod
    def _check_path(cls, path: str) -> str:
        given = path_of(path)
        if not given.exists():
            raise ValueError(f"{path} does not exist, expected a folder of clips or a table")
        if given.is_file() and given.suffix.lower() not in TABLES:
            raise ValueError(f"{path} is no table, expected a folder or a file that ends with {', '.join(TABLES)}")
        return str(given)

    @property
    def is_prepared(self) -> bool:
        """Whether the path is a directory of records rather than of clips."""
        path = Path(self.path)
        return any((folder / "conditions").is_dir() for folder in (path, path / PRECOMPUTED)) and not has_clips(path)

    @property
    def root(self) -> Path:
        """Folder of the records, which need not exist yet."""
        return Path(self.path) if self.is_prepared else records_root(Path(self.path))

    def expected_count(self) -> int:
        """About how many clips there are to prepare, told without reading them."""
        path = Path(self.path)
        if path.is_dir():
            return sum(file.suffix.lower() == ".txt" for file in path.rglob("[!.]*.*")) or 1
        return max(path.read_bytes().count(b"\n") - (path.suffix.lower() == ".csv"), 1)


def records_root(clips: Path) -> Path:
    """Folder for the records of a folder or a table of clips, unless another is given."""
    return (clips if clips.is_dir() else clips.parent) / PRECOMPUTED


def has_clips(folder: Path) -> bool:
    """Whether a folder holds captions or a table beside its records."""
    return any(path.suffix.lower() in (".txt", *TABLES) for path in folder.glob("[!.]*.*"))


class DataConfig(Strict):
    """Data to learn from."""

    sets: tuple[DataSetConfig, ...] = ()
    """One or several data sets."""
    preprocessed_data_root: str | None = None
    """The directory that holds latents/, conditions/ and so on, in place of sets."""
    encode: Literal["ahead", "lazily"] = "ahead"
    """Clips: all before the first step, or each when it is first drawn. auto: lazily where the encoders fit beside."""
    num_dataloader_workers: NonNegativeInt = 2
    """Threads that read ahead; 0 reads when a batch is needed."""
    held_out_samples: NonNegativeInt = 0
    """Examples never trained on, whose loss is measured at every validation."""
    held_out_share: float = Field(default=0.0, ge=0.0, lt=1.0)
    """The same as a share of the clips; a hash of a clip's name decides, so that more clips change nothing."""

    @field_validator("preprocessed_data_root")
    @classmethod
    def _directory(cls, root: str | None) -> str | None:
        if root is None:
            return None
        if not path_of(root).is_dir():
            raise ValueError(f"{root} is no directory")
        return str(path_of(root))

    @model_validator(mode="after")
    def _one_kind(self) -> DataConfig:
        if bool(self.sets) == (self.preprocessed_data_root is not None):
            raise ValueError("expected either sets or preprocessed_data_root")
        if self.held_out_samples and self.held_out_share:
            raise ValueError("held_out_samples and held_out_share exclude each other")
        return self

    @property
    def roots(self) -> tuple[Path, ...]:
        """Folder of the records of each set."""
        root = self.preprocessed_data_root
        return tuple(one.root for one in self.sets) if root is None else (Path(root),)

    @property
    def unprepared(self) -> tuple[DataSetConfig, ...]:
        """Sets whose records a run makes."""
        return tuple(one for one in self.sets if not one.is_prepared)
