"""Which images a page shows: really repaired or broken ones, drawn by seed; and their pixels are those measured."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from deeppatch.data import corruptions
from deeppatch.data.images import Images
from deeppatch.errors import UserError
from deeppatch.ledger.streams import ledger_streams
from deeppatch.report.page import figures
from deeppatch.report.pictures import as_data_urls, examples, pictures_of


@pytest.mark.parametrize("repaired", [True, False])
def test_every_example_is_what_it_says(blur_and_grid, repaired):
    found = examples(blur_and_grid, "switched", repaired=repaired)
    assert len(found) == len({each.image for each in found}) == 10
    for each in found:
        view = blur_and_grid.view(each.view)
        before, after = (blur_and_grid.outcomes[name, each.view] for name in ("pretrained", "switched"))
        assert view.image[each.row] == each.image
        assert each.true == blur_and_grid.classes[view.labels[each.row]]
        assert (each.before, each.after) == tuple(
            blur_and_grid.classes[own.prediction[each.row]] for own in (before, after)
        )
        assert (each.before_confidence, each.after_confidence) == (
            before.confidence[each.row],
            after.confidence[each.row],
        )
        right, wrong = (each.after, each.before) if repaired else (each.before, each.after)
        assert right == each.true != wrong
    assert "mixed" not in {each.view for each in found}
    clean = sum(each.view == "clean" for each in found)
    assert clean == 0 if repaired else clean == 5


def test_the_seed_decides(blur_and_grid):
    first, again = (examples(blur_and_grid, "finetuned", repaired=True, seed=1) for _ in range(2))
    assert first == again != examples(blur_and_grid, "finetuned", repaired=True, seed=2)


def test_fewer_where_there_are_no_more(blur_and_grid, ledger_of):
    clean = ledger_of([], ("old", "new"))
    changed = clean.correct("new", "clean") & ~clean.correct("old", "clean")
    found = examples(clean, "new", repaired=True, count=1000)
    assert sorted(each.row for each in found) == np.flatnonzero(changed).tolist()
    few = examples(blur_and_grid, "switched", repaired=False, count=3)
    assert [each.view == "clean" for each in few] == [True, True, False]


def darkened(pixels, generator):
    """A degradation of one's own whose result depends on the batch."""
    return pixels * (1 - torch.rand(len(pixels), 1, 1, 1, generator=generator))


@pytest.mark.parametrize("degradation", ["fog,gaussian_noise", darkened], ids=["by image", "by batch"])
def test_rows_are_made_again_as_they_were_measured(degradation):
    draw = torch.Generator().manual_seed(2)
    images = Images(torch.randint(0, 256, (21, 3, 32, 32), generator=draw, dtype=torch.uint8), torch.arange(21) % 3)
    degrade, snow = corruptions.corruption(degradation, seed=2021), corruptions.corruption("snow", seed=2021)
    streams = ledger_streams(images, degrade, snow, batch_size=8, seed=5)
    made = pictures_of(images, degrade, snow, batch_size=8, seed=5)
    for stream in streams:
        whole = torch.cat([pixels for pixels, _labels in stream.batches])
        for rows in ([20, 3], [9]):
            want = (255 * whole[rows]).round().to(torch.uint8)
            assert torch.equal(made(stream.view.name, rows), want), stream.view.name
    with pytest.raises(UserError, match="no degradation has the level rain-1"):
        made("rain-1", [0])
    # without some images, rows are numbered anew
    left_out = np.array([0, 4, 20])
    fewer = pictures_of(images, degrade, snow, batch_size=8, seed=5, left_out=left_out)
    for stream in streams:
        whole = torch.cat([pixels for pixels, _labels in stream.batches])
        kept = whole[torch.from_numpy(~np.isin(stream.view.image, left_out))]
        want = (255 * kept[[17, 2]]).round().to(torch.uint8)
        assert torch.equal(fewer(stream.view.name, [17, 2]), want), stream.view.name


def test_pixels_are_in_the_page_as_they_are(blur_and_grid, pixels):
    whole = pixels(blur_and_grid)
    for each in figures(blur_and_grid, "switched", whole, repaired=True, seed=2021):
        kind, content = each.source.split(",")
        assert kind == "data:image/png;base64"
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
        assert np.array_equal(shown.transpose(2, 0, 1), whole[each.example.view][each.example.row])


def test_large_images_are_thumbnails():
    (url,) = as_data_urls(torch.zeros(1, 3, 300, 200, dtype=torch.uint8))
    image = Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))
    assert (image.format, max(image.size)) == ("JPEG", 128)
