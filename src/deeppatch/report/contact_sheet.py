"""A self-contained HTML page of thumbnails with captions."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image

THUMBNAIL = 128
STYLE = """
:root { color-scheme: light dark; font: 13px/1.35 system-ui, sans-serif; }
body { margin: 1.5rem; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: 1rem; }
figure { margin: 0; }
img { width: 128px; height: 128px; object-fit: contain; background: #8882; }
img.small { image-rendering: pixelated; }
figcaption { overflow-wrap: anywhere; }
figcaption small { display: block; opacity: 0.7; }
"""


@dataclass(frozen=True)
class Tile:
    """An image with its name and further lines of its caption."""

    image: Image.Image
    name: str
    notes: Sequence[str]


def contact_sheet(title: str, lead: str, tiles: Iterable[Tile]) -> bytes:
    """Return an HTML page of all tiles, in their order, the images embedded."""
    figures = "\n".join(map(_figure, tiles))
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width">\n<style>{STYLE}</style>\n'
        f"<h1>{escape(title)}</h1>\n<p>{escape(lead)}</p>\n<main>\n{figures}\n</main>\n</html>\n"
    ).encode()


def _figure(tile: Tile) -> str:
    notes = "".join(f"<small>{escape(note)}</small>" for note in tile.notes)
    name = escape(tile.name)
    small = ' class="small"' if max(tile.image.size) < THUMBNAIL else ""
    return (
        f'<figure><img{small} src="{embedded(tile.image)}" alt="{name}"><figcaption>{name}{notes}</figcaption></figure>'
    )


def embedded(image: Image.Image, side: int = THUMBNAIL) -> str:
    """Return an image as a data URL: small ones unchanged as PNG, larger ones as JPEG of at most `side` pixels."""
    small = max(image.size) < THUMBNAIL
    shrunk = image.copy()
    shrunk.thumbnail((side, side))
    buffer = io.BytesIO()
    shrunk.save(buffer, "PNG" if small else "JPEG", quality=85)
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(buffer.getvalue()).decode()}"
