"""Models by name: bundled with a package, or on the Hugging Face hub; the known ones, and fetching them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

from ltx_core.errors import CheckpointError

TINY = "tiny"
NOT_BUNDLED = "the bundled model is in packages/ltx-tiny of LTX, which is not installed here"
COMMUNITY = "LTX-2 Community License"
GEMMA = "Gemma Terms of Use"


@dataclass(frozen=True)
class KnownModel:
    """A repository on the hub: ``files`` are the patterns of what a generation needs, ``gigabytes`` their size."""

    repo: str
    summary: str
    files: tuple[str, ...]
    gigabytes: float
    license: str
    needs: tuple[str, ...] = ()  # other repositories, such as the text encoder

    @property
    def page(self) -> str:
        return f"https://huggingface.co/{self.repo}"


GEMMA_3 = "google/gemma-3-12b-it-qat-q4_0-unquantized"
KNOWN_MODELS: dict[str, KnownModel] = {
    model.repo: model
    for model in (
        KnownModel(
            "Lightricks/LTX-2",
            "LTX-2 19B, distilled: video with sound",
            ("ltx-2-19b-distilled.safetensors", "ltx-2-spatial-upscaler-x2-*.safetensors", "LICENSE*"),
            44.3,
            COMMUNITY,
            (GEMMA_3,),
        ),
        KnownModel(
            "Lightricks/LTX-2.3",
            "LTX-2.3 22B, distilled: sharper, 48 kHz sound",
            ("ltx-2.3-22b-distilled-1.1.safetensors", "ltx-2.3-spatial-upscaler-x2-*.safetensors", "LICENSE*"),
            47.1,
            COMMUNITY,
            (GEMMA_3,),
        ),
        KnownModel(
            "Lightricks/LTX-2.5",
            "LTX-2.5 22B, distilled, in parts, with its text encoder: chooses its length",
            (
                "*ltx-2.5-22b-distilled-transformer-bf16.safetensors",
                "*gemma4-12b-with-proj-ltx-2.5-bf16.safetensors",
                "*ltx-2.5-video-vae-conv-bf16.safetensors",
                "*ltx-2.5-audio-vae-bf16.safetensors",
                "*ltx-2.5-latent-spatial-upscaler-x2-bf16-1.0.safetensors",
                "*ltx-2.5-duration-head-bf16.safetensors",
                "LICENSE*",
            ),
            71.0,
            COMMUNITY,
        ),
        KnownModel(
            "Lightricks/LTX-Video",
            "LTX-Video 0.9.8 13B, distilled: pictures without sound",
            ("ltxv-13b-0.9.8-distilled.safetensors", "ltxv-spatial-upscaler-0.9.8.safetensors", "*icense*"),
            29.1,
            "LTX-Video Open Weights License",
        ),
        KnownModel(
            GEMMA_3,
            "Gemma 3 12B, the text encoder of LTX-2 and LTX-2.3",
            ("*.safetensors", "*.json", "tokenizer.model"),
            24.4,
            GEMMA,
        ),
    )
}


def download_model(repo: str) -> Path:
    """The folder of a repository's files, fetched as far as they are missing; interrupted downloads go on.

    Fetches what a generation needs of a known model, the text encoder of another repository included; of an unknown
    one all safetensors and JSON files. Shows its progress. Raises `CheckpointError` with advice.
    """
    from huggingface_hub import snapshot_download

    known = KNOWN_MODELS.get(repo)
    patterns = list(known.files) if known else ["*.safetensors", "*.json"]
    for other in known.needs if known else ():
        download_model(other)
    with hub_errors(repo):
        return Path(snapshot_download(repo, allow_patterns=patterns))


def bundled_model(name: str) -> Path | None:
    """The folder of a model that an installed package ships, found through the entry points of `ltx.models`."""
    return next((Path(entry.load()()) for entry in entry_points(group="ltx.models", name=name)), None)


def bundled_folders() -> list[Path]:
    """Folders of models in installed packages."""
    return [Path(entry.load()()) for entry in entry_points(group="ltx.models")]


def on_disk(repo: str) -> Path | None:
    """The folder of a repository in the local cache; None when nothing of it is there. Never asks the network."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, local_files_only=True))
    except Exception:  # the hub raises a family of its own for "not here"
        return None


def cache_folder() -> Path:
    """Folder of downloads."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def free_disk_bytes() -> int:
    """Room where downloads go."""
    folder = cache_folder()
    return shutil.disk_usage(next(one for one in (folder, *folder.parents) if one.exists())).free


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder, links followed."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@contextmanager
def hub_errors(repo: str) -> Iterator[None]:
    """One line with advice for what the hub refuses."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(advice(repo, error)) from error
    except ValueError as error:  # a malformed repository name
        raise CheckpointError(f"{repo}: {' '.join(str(error).split())}") from error


def advice(repo: str, error: BaseException) -> str:
    """Advice on a failed download."""
    known = KNOWN_MODELS.get(repo)
    page = f"https://huggingface.co/{repo}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    name = type(error).__name__
    if name == "GatedRepoError" or status in (401, 403):
        terms = f" ({known.license})" if known else ""
        signed_in = "your token may not read it" if _has_token() else "you are not signed in"
        return (
            f"{repo} asks for consent and {signed_in}: accept its licence{terms} on {page}, "
            "then run `hf auth login` or set HF_TOKEN"
        )
    if name == "RepositoryNotFoundError" or status == 404:
        return f"{repo} is not on the hub, or is private: see {page}; a private one needs `hf auth login`"
    if getattr(error, "errno", None) == 28:
        return f"disk full while fetching {repo}: free space or set HF_HOME to another disk; the download goes on there"
    if os.environ.get("HF_HUB_OFFLINE", "") in ("1", "true", "True", "TRUE") or name == "OfflineModeIsEnabled":
        return f"{repo} is not on disk and HF_HUB_OFFLINE is set: unset it, or give a folder with --model"
    if name == "LocalEntryNotFoundError" or "ConnectError" in str(error) or "ConnectTimeout" in str(error):
        return f"{repo} is not on disk and the hub cannot be reached: check the network, or give a folder with --model"
    cause = " ".join(str(error).split())[:200]
    return f"cannot fetch {repo}: {cause}; run the same command again to go on, or give a folder with --model"


def _has_token() -> bool:
    from huggingface_hub import get_token

    return get_token() is not None
