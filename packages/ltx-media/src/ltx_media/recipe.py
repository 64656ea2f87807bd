"""The recipe of a result, kept inside the file: a JSON object in the metadata of MP4, WAV and PNG files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from ltx_core.textfiles import parse_json
from ltx_media.containers import open_container
from ltx_media.errors import check_regular, media_errors

RECIPE_KEY = "recipe"
CONTAINER_KEY = "comment"  # the tag of that length-free kind that MP4, MOV and WAV share


def container_tags(metadata: Mapping[str, str] | None) -> dict[str, str]:
    """``metadata`` under the tag names containers know."""
    return {CONTAINER_KEY if key == RECIPE_KEY else key: value for key, value in (metadata or {}).items()}


def read_recipe(path: str | Path) -> dict[str, Any] | None:
    """The recipe stored in an MP4, WAV or PNG; ``None`` when the file carries none. Raises ``MediaError``."""
    with media_errors(path, "read recipe"):
        if Path(path).suffix.lower() == ".png":
            check_regular(path)
            with Image.open(path) as image:
                image.load()
                text = getattr(image, "text", {}).get(RECIPE_KEY)
        else:
            with open_container(path) as source:
                text = source.metadata.get(CONTAINER_KEY)
    try:
        recipe = parse_json(text, str(path)) if text else None
    except ValueError:
        return None
    return recipe if isinstance(recipe, dict) else None
