"""Pictures in a terminal, by whichever way it knows: Kitty's, iTerm's, sixels, or two pixels to a character.

``LTX_PREVIEW`` chooses where a terminal is not recognised: kitty, iterm, sixel or blocks.
"""

from __future__ import annotations

import base64
import io
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from PIL import Image
from rich.color import Color
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import Progress
from rich.segment import ControlType, Segment
from rich.style import Style
from torch import Tensor

from ltx_core.errors import ConfigError, nearest_hint

Way = Literal["kitty", "iterm", "sixel", "blocks"]
WAYS: tuple[Way, ...] = ("kitty", "iterm", "sixel", "blocks")
COLUMNS, ROWS = 64, 20  # of characters, at most
CELL = (10, 20)  # pixels of a character that sixels reckon with


def way_of(environment: Mapping[str, str]) -> Way:
    """The way in which a terminal shows pictures. Raises `ConfigError` for an ``LTX_PREVIEW`` that is none."""
    if (asked := environment.get("LTX_PREVIEW")) is not None:
        for way in WAYS:
            if way == asked:
                return way
        raise ConfigError(f"LTX_PREVIEW is {asked!r}, expected one of {', '.join(WAYS)}{nearest_hint(asked, WAYS)}")
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if environment.get("TMUX"):  # passes no pictures on
        return "blocks"
    if "KITTY_WINDOW_ID" in environment or "kitty" in term or "ghostty" in term:
        return "kitty"
    if program in ("iTerm.app", "WezTerm") or environment.get("LC_TERMINAL") == "iTerm2":
        return "iterm"
    return "sixel" if term.startswith(("foot", "mlterm", "contour")) or "sixel" in term else "blocks"


@dataclass
class Picture:
    """A picture among the lines of rich, which draws it anew with them."""

    image: Image.Image
    way: Way
    codes: dict[tuple[int, int], str] = field(default_factory=dict)  # by size, as rich asks for each ten times a second

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        columns, rows = fitting_cells(self.image.size, min(COLUMNS, options.max_width), min(ROWS, console.height - 6))
        if self.way == "blocks":
            yield from blocks(self.image, columns, rows)
            return
        if (columns, rows) not in self.codes:
            self.codes[columns, rows] = escape_code(self.image, self.way, columns, rows)
        yield from [Segment.line()] * (rows - 1)
        up = f"\x1b[{rows - 1}A" if rows > 1 else ""
        drawn = f"\x1b7{up}\r{self.codes[columns, rows]}\x1b8"
        yield Segment(drawn, None, [(ControlType.CARRIAGE_RETURN,)])  # rich counts no column for it
        yield Segment.line()


def fitting_cells(size: tuple[int, int], columns: int, rows: int) -> tuple[int, int]:
    """The characters a picture covers, each twice as high as wide, in a field of ``columns`` and ``rows``."""
    width, height = size
    scale = min(columns / width, 2 * max(rows, 1) / height)
    return max(round(width * scale), 1), max(round(height * scale / 2), 1)


def blocks(image: Image.Image, columns: int, rows: int) -> Iterator[Segment]:
    """Upper half blocks: the colour of the upper pixel on that of the lower one."""
    small = image.convert("RGB").resize((columns, 2 * rows))
    pixel: Any = small.getpixel
    for row in range(rows):
        for column in range(columns):
            upper, lower = (Color.from_rgb(*pixel((column, 2 * row + half))) for half in (0, 1))
            yield Segment("▀", Style(color=upper, bgcolor=lower))
        yield Segment.line()


def escape_code(image: Image.Image, way: Way, columns: int, rows: int) -> str:
    """Escape code that draws a picture over so many characters from the cursor on."""
    if way == "sixel":
        return sixels(image, (columns * CELL[0], rows * CELL[1]))
    data = base64.b64encode(png(image)).decode()
    if way == "iterm":
        return f"\x1b]1337;File=inline=1;width={columns};height={rows};preserveAspectRatio=0:{data}\x07"
    pieces = [data[at : at + 4096] for at in range(0, len(data), 4096)]
    keys = [f"a=T,f=100,q=2,i=1,p=1,C=1,c={columns},r={rows},", *[""] * (len(pieces) - 1)]
    more = [1] * (len(pieces) - 1) + [0]
    return "".join(f"\x1b_G{key}m={last};{piece}\x1b\\" for key, last, piece in zip(keys, more, pieces, strict=True))


def png(image: Image.Image) -> bytes:
    """The picture as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def sixels(image: Image.Image, size: tuple[int, int]) -> str:
    """Bands of six rows: for each of 64 colours, a character per column whose bits say which rows have it."""
    indexed = image.convert("RGB").quantize(64)
    colours = np.array(indexed.getpalette()).reshape(-1, 3)[:64] * 100 // 255
    palette = "".join(f"#{index};2;{red};{green};{blue}" for index, (red, green, blue) in enumerate(colours))
    pixels = np.array(indexed.resize(size))
    pixels = np.pad(pixels, ((0, -len(pixels) % 6), (0, 0)), constant_values=255)  # no colour
    bands = []
    for band in pixels.reshape(-1, 6, size[0]):
        lines = []
        for index in np.unique(band[band < 64]):
            bits = (63 + ((band == index) << np.arange(6)[:, None]).sum(0)).astype(np.uint8)
            text = re.sub(r"(.)\1{3,}", lambda run: f"!{len(run[0])}{run[1]}", bits.tobytes().decode())
            lines.append(f"#{index}{text}")
        bands.append("$".join(lines))
    return f'\x1bPq"1;1;{size[0]};{size[1]}{palette}{"-".join(bands)}\x1b\\'


class PicturedProgress(Progress):
    """Bars below a picture; in a notebook the picture stands below the cell. Each picture replaces the last."""

    picture: Picture | None = None
    inline: Any = None  # what a notebook shows

    def show(self, frame: Tensor) -> None:
        """Show a frame, uint8 ``[H, W, 3]``."""
        image = Image.fromarray(frame.numpy())
        if "ipykernel" not in sys.modules:
            self.picture = Picture(image, way_of(os.environ))
            return
        from IPython.display import Image as Inline
        from IPython.display import display

        if self.inline is None:
            self.inline = display(Inline(png(image), width=384), display_id=True)
        else:
            self.inline.update(Inline(png(image), width=384))

    def get_renderables(self) -> Iterator[RenderableType]:
        """Elements that rich draws, from the top."""
        if self.picture is not None:
            yield self.picture
        yield from super().get_renderables()
