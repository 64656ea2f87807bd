"""The recipe of a result, kept inside the file: a JSON object in the metadata of MP4, WAV and PNG files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltx_core.textfiles import parse_json
from ltx_media.containers import open_container
from ltx_media.errors import media_errors

RECIPE_KEY = "recipe"
CONTAINER_KEY = "comment"  # the tag of that length-free kind that MP4, MOV and WAV share


def container_tags(metadata: Mapping[str, str] | None) -> dict[str, str]:
    """``metadata`` under the tag names containers know."""
    return {CONTAINER_KEY if key == RECIPE_KEY else key: value for key, value in (metadata or {}).items()}


def read_recipe(path: str | Path) -> dict[str, Any] | None:
    """The recipe stored in a file that we wrote; ``None`` when the file carries none. Raises ``MediaError``."""
    with media_errors(path, "read recipe"):
        if Path(path).suffix.lower() in (".png", ".gif", ".webp"):
            from ltx_media.images import open_image  # takes torch

            with open_image(path) as image:
                held = getattr(image, "text", {}).get(RECIPE_KEY) or image.info.get("comment") or image.info.get("xmp")
                text = held.decode("utf-8", "replace") if isinstance(held, bytes) else held
        else:
            with open_container(path) as source:
                tags = {key.lower(): value for key, value in source.metadata.items()}
                text = next((tags[key] for key in (CONTAINER_KEY, "description") if key in tags), None)
    try:
        recipe = parse_json(text, str(path)) if text else None
    except ValueError:
        return None
    return recipe if isinstance(recipe, dict) else None
