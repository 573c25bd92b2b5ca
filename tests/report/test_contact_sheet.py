from __future__ import annotations

import base64
import io
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from deeppatch.report.contact_sheet import THUMBNAIL, Tile, contact_sheet

VOID = {"meta", "img"}


class Reader(HTMLParser):
    """Collects images and text, and checks that what is opened is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.images.append(dict(attributes))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and self.open[-1] != "style":
            self.text.append(data.strip())


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def read(page: bytes) -> Reader:
    reader = Reader()
    reader.feed(page.decode())
    assert reader.open == []
    return reader


def embedded(image: dict[str, str | None]) -> Image.Image:
    kind, _, content = (image["src"] or "").partition(";base64,")
    assert kind in ("data:image/png", "data:image/jpeg")
    return Image.open(io.BytesIO(base64.b64decode(content, validate=True)))


def test_every_tile_is_there_in_order_with_name_and_notes():
    tiles = [Tile(picture(32, 32, 1), "a/1.png", ["near", "0.50"]), Tile(picture(32, 32, 2), "b.png", [])]
    found = read(contact_sheet("Images to label", "2 of 9 images.", tiles))
    assert found.text == ["Images to label"] * 2 + ["2 of 9 images.", "a/1.png", "near", "0.50", "b.png"]
    assert [image["alt"] for image in found.images] == ["a/1.png", "b.png"]
    for image, tile in zip(found.images, tiles, strict=True):
        assert np.array_equal(np.asarray(embedded(image)), np.asarray(tile.image)), "small images stay as they are"


def test_large_images_are_shrunk_and_keep_their_shape():
    large = picture(400, 200)
    found = embedded(read(contact_sheet("t", "l", [Tile(large, "x", [])])).images[0])
    assert found.size == (THUMBNAIL, THUMBNAIL // 2)
    assert large.size == (400, 200)


def test_a_page_needs_no_other_file_and_survives_odd_names():
    page = contact_sheet("t", "<b>&", [Tile(picture(8, 8), '"><script>.png', ["<i>"])])
    found = read(page)
    assert found.images[0]["alt"] == '"><script>.png'
    assert "<i>" in found.text
    assert b"http" not in page
    assert b"<script" not in page
