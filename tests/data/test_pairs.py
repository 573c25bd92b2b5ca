"""Fixed pairs of image and level: their pixels stay, whoever chooses, orders or mixes them."""

from __future__ import annotations

import pytest
import torch

from deeppatch.data import corruptions, views
from deeppatch.data.images import Images
from deeppatch.data.pairs import after_clean, fixed_draw, half_epochs, of_rows, shuffled_epochs


def noise(pixels, generator):
    return pixels + 0.1 * torch.randn(pixels.shape, generator=generator, device=pixels.device)


@pytest.fixture(params=["blur", "noise of a batch"])
def draw(request, images, blur):
    """One draw of a corruption of images, and of one whose random numbers depend on the batch."""
    corruption = blur if request.param == "blur" else corruptions.corruption({"weak": noise, "strong": noise})
    return fixed_draw(images, corruption, 16, seed=4)


def everything(view):
    batches = list(view)
    return torch.cat([pixels for pixels, _ in batches]), torch.cat([labels for _, labels in batches])


def test_a_draw_has_every_image_once_and_about_half_of_them_clean(images, blur):
    many = Images(images.pixels.repeat(40, 1, 1, 1), images.labels.repeat(40))
    draw = fixed_draw(many, blur, 16, seed=4)
    assert draw.index.tolist() == list(range(2400))
    share = torch.bincount(draw.levels, minlength=7) / 2400
    assert share.tolist() == pytest.approx([0.5] + [1 / 12] * 6, abs=0.04)
    assert torch.equal(fixed_draw(many, blur, 5, seed=4).levels, draw.levels)
    assert not torch.equal(fixed_draw(many, blur, 16, seed=5).levels, draw.levels)


def test_chosen_rows_keep_their_pixels_in_any_order(draw):
    pixels, labels = everything(draw)
    rows = torch.tensor([41, 3, 17, 59, 18])
    chosen = of_rows(draw, rows)
    assert torch.equal(chosen.levels, draw.levels[rows])
    found, known = everything(chosen)
    assert torch.equal(found, pixels[rows])
    assert torch.equal(known, labels[rows])
    again, _ = everything(of_rows(chosen, torch.tensor([2, 0])))
    assert torch.equal(again, pixels[rows[[2, 0]]]), "what is chosen can be chosen from"


def test_clean_images_come_first_and_chosen_ones_keep_their_pixels(draw, images):
    pixels, _ = everything(draw)
    rows = (draw.levels > 0).nonzero().flatten()[:7]
    both = after_clean(images, of_rows(draw, rows))
    found, labels = everything(both)
    assert torch.equal(found, torch.cat([images.pixels.float() / 255, pixels[rows]]))
    assert torch.equal(labels, torch.cat([images.labels, images.labels[rows]]))


def test_an_epoch_has_every_pair_once_in_the_order_of_fine_tuning(draw, images):
    epochs = shuffled_epochs(draw, epochs=2, passes=None, batch_size=25, seed=7)
    orders = [views.Shuffled(images, 25, 7, epoch).draw()[0] for epoch in range(2)]
    assert [epoch.sizes for epoch in epochs] == [[25, 25, 10]] * 2
    if draw.corruption is not None and not corruptions.depends_on_batch(draw.corruption):
        pixels, _ = everything(draw)
        for epoch, order in zip(epochs, orders, strict=True):
            assert torch.equal(everything(epoch)[0], pixels[order])
    assert [epoch.sizes for epoch in shuffled_epochs(draw, epochs=9, passes=100, batch_size=25, seed=7)] == [
        [25, 25, 10],
        [25],
    ]


def test_half_of_an_epoch_is_clean_and_chosen_images_take_turns(images, blur):
    draw = fixed_draw(images, blur, 16, seed=4)
    both = after_clean(images, of_rows(draw, torch.arange(7)))
    first, second = half_epochs(both, 60, epochs=2, passes=None, batch_size=25, seed=1)
    assert first.sizes == [25, 25, 10]
    rows = torch.arange(67)
    place = dict(zip(zip(both.index.tolist(), both.levels.tolist(), rows.tolist(), strict=True), rows, strict=True))
    assert len(place) == 67
    marked = views.replace(both, index=rows, levels=torch.zeros_like(rows))
    for epoch in half_epochs(marked, 60, epochs=2, passes=None, batch_size=25, seed=1):
        counts = torch.bincount(epoch.index, minlength=67)
        assert counts[:60].sum() == counts[60:].sum() == 30
        assert counts[:60].max() == 1
        assert {*counts[60:].tolist()} == {4, 5}, "30 of 7: each four or five times"
    assert not torch.equal(first.index, second.index)
