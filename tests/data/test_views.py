from __future__ import annotations

import pytest
import torch

from deeppatch.data import views
from deeppatch.data.corruptions import SIGMAS, corruption
from deeppatch.data.images import Images, to_float


def read(stream) -> tuple[torch.Tensor, torch.Tensor]:
    """All pixels and labels of a stream, which has as many batches as it says."""
    batches = list(stream)
    assert len(batches) == len(stream)
    return torch.cat([pixels for pixels, _ in batches]), torch.cat([labels for _, labels in batches])


def plain(images: Images, blur, index: list[int], levels: list[int]) -> torch.Tensor:
    """The oracle: one image after the other."""
    return torch.stack([
        blur(images.pixels[place : place + 1].double().div(255).float(), level)[0]
        for place, level in zip(index, levels, strict=True)
    ])  # fmt: skip


class Recorder:
    """Stands in for a blur: keeps the levels and hands the pixels back."""

    draws = False
    level_names = tuple(map(str, SIGMAS))

    def __init__(self) -> None:
        self.levels = []

    def __len__(self) -> int:
        return len(self.level_names)

    def __call__(self, pixels, levels, generator=None):
        self.levels.append(levels)
        return pixels


@pytest.fixture
def numbered():
    """A thousand images whose every pixel tells which they are; labels are the numbers."""
    number = torch.arange(1000)
    pixels = torch.stack([number % 256, number // 256, number * 0], 1).to(torch.uint8)
    return Images(pixels.view(-1, 3, 1, 1).expand(-1, -1, 4, 4).contiguous(), number)


def numbers(pixels: torch.Tensor) -> list[int]:
    values = (pixels.amax((2, 3)) * 255).round().long()
    return (values[:, 0] + 256 * values[:, 1]).tolist()


# --- fixed views


@pytest.mark.parametrize(
    ("make", "levels"),
    [
        (lambda images, _blur, size: views.clean(images, size), [0]),
        (views.expand, [1, 2, 3, 4, 5, 6]),
        (views.append, [0, 1, 2, 3, 4, 5, 6]),
        (lambda images, blur, size: views.levels_view(images, blur, [4], size), [4]),
        (lambda images, blur, size: views.levels_view(images, blur, [6, 2], size), [6, 2]),
    ],
    ids=["clean", "expand", "append", "replace", "two levels"],
)
@pytest.mark.parametrize("size", [16, 60, 1000])
def test_a_view_is_every_image_at_each_level_one_level_after_the_other(images, blur, make, levels, size):
    view = make(images, blur, size)
    pixels, labels = read(view)
    assert len(pixels) == len(levels) * 60
    want = plain(images, blur, list(range(60)) * len(levels), [level for level in levels for _ in range(60)])
    torch.testing.assert_close(pixels, want, rtol=0, atol=1e-5)
    assert labels.tolist() == images.labels.tolist() * len(levels)
    assert torch.equal(view.labels, labels)


def test_batches_are_full_but_for_the_last(images, blur):
    assert [len(labels) for _, labels in views.append(images, blur, 100)] == [100] * 4 + [20]
    assert [len(labels) for _, labels in views.clean(images, 30)] == [30, 30]


def test_a_view_reads_the_same_each_time_and_leaves_the_images_alone(images, blur):
    before = images.pixels.clone()
    view = views.append(images, blur, 32)
    assert torch.equal(read(view)[0], read(view)[0])
    assert torch.equal(images.pixels, before)


def test_clean_pixels_are_exact(images, blur):
    assert torch.equal(read(views.clean(images, 32))[0], images.pixels.float() / 255)
    assert torch.equal(read(views.append(images, blur, 32))[0][:60], images.pixels.float() / 255)


def test_pixels_become_shares_of_255():
    found = to_float(torch.tensor([0, 51, 255], dtype=torch.uint8))
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx([0, 0.2, 1])


# --- drawn views


def test_a_degraded_draw_is_every_image_once_never_clean(numbered):
    view = views.random_level_view(numbered, Recorder(), 64, 5)
    assert view.index.tolist() == list(range(1000))
    counts = torch.bincount(view.levels, minlength=7)
    assert counts[0] == 0
    assert len(counts) == 7
    assert (counts[1:] > 120).all(), "uniform: 167 expected, 5 sigma is 59"
    assert (counts[1:] < 226).all()


def test_a_degraded_draw_is_fixed_by_its_seed(images, blur):
    first = views.random_level_view(images, blur, 16, 5)
    torch.rand(3)
    assert torch.equal(views.random_level_view(images, blur, 60, 5).levels, first.levels)
    want = plain(images, blur, list(range(60)), first.levels.tolist())
    torch.testing.assert_close(read(first)[0], want, rtol=0, atol=1e-5)


def test_a_mixed_stream_is_every_image_once_shuffled_and_about_half_clean(numbered):
    recorder = Recorder()
    view = views.mixed_stream(numbered, recorder, 64, 5)
    pixels, labels = read(view)
    assert numbers(pixels) == labels.tolist(), "labels stay with their images"
    assert sorted(labels.tolist()) == list(range(1000))
    displaced = (labels - torch.arange(1000)).abs().float().mean()
    assert displaced > 200, "a shuffle moves an image by a third of the length on average"
    counts = torch.bincount(torch.cat(recorder.levels), minlength=7).tolist()
    assert 420 < counts[0] < 580
    assert all(45 < count < 130 for count in counts[1:])
    assert len(counts) == 7


def test_in_a_mixed_stream_place_tells_nothing_about_level(numbered):
    levels = views.mixed_stream(numbered, Recorder(), 64, 5).levels
    halves = [(half == 0).float().mean() for half in levels.split(500)]
    assert all(0.39 < half < 0.61 for half in halves)


def test_a_mixed_stream_repeats_by_seed(images, blur):
    first = views.mixed_stream(images, blur, 16, 5)
    torch.rand(3)
    again = views.mixed_stream(images, blur, 60, 5)
    assert torch.equal(first.index, again.index)
    assert torch.equal(first.levels, again.levels)
    want = plain(images, blur, first.index.tolist(), first.levels.tolist())
    torch.testing.assert_close(read(first)[0], want, rtol=0, atol=1e-5)


def test_random_levels_are_clean_half_the_time_and_else_uniform():
    levels = views.random_levels(60_000, 6, torch.Generator().manual_seed(1))
    counts = torch.bincount(levels)
    assert levels.dtype == torch.int64
    assert len(counts) == 7
    assert counts[0] / 60_000 == pytest.approx(0.5, abs=0.011)  # 5 sigma
    assert (counts[1:] / 60_000).tolist() == pytest.approx([1 / 12] * 6, abs=0.006)


# --- training epochs


def shuffled(images: Images, epoch: int = 0, **changes) -> views.Shuffled:
    return views.Shuffled(images, changes.pop("batch_size", 64), changes.pop("seed", 3), epoch, **changes)


def test_an_epoch_is_every_image_once_shuffled(numbered):
    pixels, labels = read(shuffled(numbered))
    assert numbers(pixels) == labels.tolist()
    assert sorted(labels.tolist()) == list(range(1000))
    assert (labels - torch.arange(1000)).abs().float().mean() > 200
    assert len(shuffled(numbered)) == 16
    assert torch.equal(pixels[0], numbered.pixels[labels[0]].float() / 255)


def test_an_epoch_can_be_read_again(images, blur):
    made = shuffled(images, 4, batch_size=16, corruption=blur, augment=True)
    first = read(made)
    torch.rand(3)
    for again in (made, shuffled(images, 4, batch_size=16, corruption=blur, augment=True)):
        assert all(torch.equal(*pair) for pair in zip(first, read(again), strict=True))


def test_epochs_differ_in_order_levels_and_crops(numbered):
    orders, levels = [], []
    for epoch in range(3):
        recorder = Recorder()
        orders.append(tuple(read(shuffled(numbered, epoch, corruption=recorder))[1].tolist()))
        levels.append(tuple(torch.cat(recorder.levels).tolist()))
    assert len(set(orders)) == len(set(levels)) == 3


def test_reading_an_epoch_draws_nothing_from_the_global_state(images, blur):
    before = torch.get_rng_state()
    read(shuffled(images, corruption=blur, augment=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_an_epoch_without_blur_is_clean_and_one_with_blur_is_half_clean(numbered):
    recorder = Recorder()
    read(shuffled(numbered, corruption=recorder))
    levels = torch.cat(recorder.levels)
    assert 420 < (levels == 0).sum() < 580
    assert set(levels.tolist()) == set(range(7))
    assert all(len(levels) == 64 for levels in recorder.levels[:-1])


def test_an_epoch_blurs_each_image_at_the_level_drawn_for_it(images, blur):
    """Every batch is found among the seven versions of the images that its labels name."""
    everything = images.pixels.float() / 255
    distinct = Images(images.pixels, torch.arange(60))
    versions = torch.stack([blur(everything, level) for level in range(7)])
    pixels, labels = read(shuffled(distinct, batch_size=16, corruption=blur))
    nearest = (versions[:, labels] - pixels).abs().amax((2, 3, 4)).min(0)
    assert nearest.values.max() < 1e-5
    assert set(nearest.indices.tolist()) >= {0, 1, 6}


# --- crop and flip


def candidates(image: torch.Tensor, padding: int) -> torch.Tensor:
    """The oracle: all crops of one zero-padded image (C, H, W), as they are and mirrored, (tops, lefts, 2, C, H, W)."""
    channels, height, width = image.shape
    padded = torch.zeros(channels, height + 2 * padding, width + 2 * padding)
    padded[:, padding : padding + height, padding : padding + width] = image
    return torch.stack([
        torch.stack([
            torch.stack([crop, crop.flip(2)])
            for left in range(2 * padding + 1)
            for crop in [padded[:, top : top + height, left : left + width]]
        ])
        for top in range(2 * padding + 1)
    ])  # fmt: skip


@pytest.mark.parametrize(("height", "width", "padding"), [(32, 20, 4), (17, 14, 2), (12, 12, 1)])
def test_each_image_is_one_of_its_crops_and_every_crop_is_as_likely(height, width, padding):
    count, kinds = 250, 2 * padding + 1
    images = torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(6)) + 0.1
    before = images.clone()
    found = views.crop_and_flip(images, views.random_crops(count, height, torch.Generator().manual_seed(7)))
    assert torch.equal(images, before)
    assert found.shape == images.shape
    assert found.is_contiguous()
    drawn = []
    for image, crop in zip(images, found, strict=True):
        matches = (candidates(image, padding) == crop).flatten(3).all(3).nonzero()
        assert len(matches) == 1
        drawn.append(matches[0])
    tops, lefts, mirrored = torch.stack(drawn).T
    for offsets in (tops, lefts):
        counts = torch.bincount(offsets, minlength=kinds)
        assert len(counts) == kinds
        assert (counts > 0.4 * count / kinds).all()
        assert (counts < 1.9 * count / kinds).all()
    assert 0.35 < mirrored.float().mean() < 0.65
    # top, left and mirroring are drawn apart from each other
    assert torch.corrcoef(torch.stack([tops, lefts, mirrored]).float()).triu(1).abs().max() < 0.25


def test_crops_repeat_by_their_generator():
    images = torch.rand(50, 3, 12, 12)
    draws = (views.random_crops(50, 12, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    first, again, other = (views.crop_and_flip(images, crops) for crops in draws)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_augmented_images_are_one_fixed_draw_of_crops_and_mirror_images(images, monkeypatch):
    first, again, other = (views.augmented(images, seed) for seed in (1, 1, 2))
    assert torch.equal(first.pixels, again.pixels)
    assert not torch.equal(first.pixels, other.pixels)
    assert torch.equal(first.labels, images.labels)
    assert first.pixels.dtype == torch.uint8
    for image, found in zip(images.pixels[:9].float(), first.pixels[:9].float(), strict=True):
        every = candidates(image, 1)
        assert (every == found).flatten(3).all(3).any()


def test_an_epoch_is_cropped_and_mirrored_only_when_asked(images):
    distinct = Images(images.pixels, torch.arange(60))
    everything = images.pixels.float() / 255
    pixels, labels = read(shuffled(distinct, batch_size=16))
    assert torch.equal(pixels, everything[labels])
    pixels, labels = read(shuffled(distinct, batch_size=16, augment=True))
    assert sorted(labels.tolist()) == list(range(60))
    for crop, label in zip(pixels, labels, strict=True):
        assert (candidates(everything[label], 1) == crop).flatten(3).all(3).any()
    assert not torch.equal(pixels, everything[labels])


def test_crops_come_before_the_blur(images, blur):
    """The border that a crop lets in is blurred like the rest, as a camera would."""
    recorder = Recorder()
    cropped, labels = read(shuffled(images, batch_size=16, corruption=recorder, augment=True))
    blurred, same_labels = read(shuffled(images, batch_size=16, corruption=blur, augment=True))
    assert torch.equal(labels, same_labels)
    torch.testing.assert_close(blurred, blur(cropped, torch.cat(recorder.levels)), rtol=0, atol=1e-5)


def test_drawn_views_differ_between_seeds(images, blur):
    for make in (views.random_level_view, views.mixed_stream):
        assert not torch.equal(make(images, blur, 16, 5).levels, make(images, blur, 16, 6).levels)
    first, second = (next(iter(views.Shuffled(images, 60, seed, 0))) for seed in (3, 4))
    assert not torch.equal(first[1], second[1])


# --- parts of batches, as ranks read them


@pytest.mark.parametrize("of", [2, 3, 7])
@pytest.mark.parametrize(
    "make",
    [
        lambda images, blur: shuffled(images, 2, batch_size=16, corruption=blur, augment=True),
        lambda images, _blur: shuffled(images, 2, batch_size=59),
        lambda images, blur: views.append(images, blur, 32),
        lambda images, _blur: views.clean(images, 59),
    ],
    ids=["augmented and blurred", "last batch of one", "append", "clean, last batch of one"],
)
def test_the_parts_of_a_batch_are_the_batch(images, blur, make, of):
    whole = make(images, blur)
    parts = [list(whole.shard(which, of)) for which in range(of)]
    assert whole.sizes == [len(labels) for _, labels in whole]
    for (pixels, labels), *found in zip(whole, *parts, strict=True):
        torch.testing.assert_close(torch.cat([part for part, _ in found]), pixels, rtol=0, atol=1e-6)
        assert torch.cat([part for _, part in found]).tolist() == labels.tolist()
        sizes = [len(part) for _, part in found]
        assert max(sizes) - min(sizes) <= 1
    assert len(whole.shard(0, of)) == len(whole)


# --- corruptions that draw


def noise(pixels, generator):
    """Depends on the rest of its batch as well as on the generator."""
    return pixels * 0.5 + pixels.mean() / 4 + 0.1 * torch.rand(pixels.shape, generator=generator)


def dim(pixels, generator):
    return pixels * torch.rand(len(pixels), 1, 1, 1, generator=generator)


MAKERS = {
    "append": views.append,
    "degraded draw": lambda images, drawing, size: views.random_level_view(images, drawing, size, 5),
    "mixed stream": lambda images, drawing, size: views.mixed_stream(images, drawing, size, 5),
    "epoch": lambda images, drawing, size: shuffled(images, 2, batch_size=size, corruption=drawing, augment=True),
}


@pytest.mark.parametrize("size", [1, 7, 64])
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_what_a_callable_draws_repeats_and_does_not_depend_on_how_many_share_a_batch(images, make, size):
    drawing = corruption({"noise": noise, "dim": dim}, seed=3)
    before, whole = torch.get_rng_state(), make(images, drawing, size)
    pixels, labels = read(whole)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(read(make(images, corruption({"noise": noise, "dim": dim}, seed=3), size))[0], pixels)
    other = make(images, corruption({"noise": noise, "dim": dim}, seed=4), size)
    assert torch.equal(read(other)[1], labels)
    assert not torch.equal(read(other)[0], pixels)
    parts = zip(*(list(whole.shard(which, 3)) for which in range(3)), strict=True)
    assert torch.equal(torch.cat([part for batch in parts for part, _labels in batch]), pixels)


def test_batches_levels_epochs_and_views_draw_apart(images):
    same = Images(images.pixels[:1].expand(60, -1, -1, -1), torch.zeros(60, dtype=torch.long))
    drawing = corruption({"one": dim, "two": dim})
    pixels = [
        *[batch for batch, _labels in views.expand(same, drawing, 20)],
        next(iter(views.random_level_view(same, corruption({"one": dim}), 20, 1)))[0],
        *[next(iter(shuffled(same, epoch, batch_size=60, corruption=drawing)))[0] for epoch in range(2)],
    ]
    shades = [batch.mean((1, 2, 3)).unique() for batch in pixels]
    assert [len(batch) for batch in shades[:-2]] == [20] * 7
    assert len(torch.cat(shades[:-2]).unique()) == 7 * 20
    assert not torch.isin(shades[-1][:-1], shades[-2]).any(), "only the clean shade is in both"


def test_a_corruption_by_name_reads_as_the_blur_does(images, blur):
    named = corruption("gaussian-blur")
    assert torch.equal(read(views.append(images, named, 32))[0], read(views.append(images, blur, 32))[0])


def test_float_pixels_are_read_as_they_are():
    images = Images(torch.rand(5, 3, 20, 28), torch.arange(5))
    assert torch.equal(read(views.clean(images, 2))[0], images.pixels)
    assert read(shuffled(images, augment=True))[0].shape == (5, 3, 20, 28)


def test_an_ordered_view_has_the_same_pairs_in_that_order(numbered, blur):
    view = views.expand(numbered, blur, 64)
    order = torch.randperm(len(view.index), generator=torch.Generator().manual_seed(0))
    found = views.ordered(view, order)
    assert torch.equal(found.index, view.index[order])
    assert torch.equal(found.levels, view.levels[order])
    assert torch.equal(found.labels, view.labels[order])
    assert len(found) == len(view)


def test_without_mirror_images_the_same_crops_are_drawn(images):
    draws = [torch.Generator().manual_seed(7) for _ in range(2)]
    crops, plain = views.random_crops(50, 32, draws[0]), views.random_crops(50, 32, draws[1], mirror=False)
    assert torch.equal(crops[:2], plain[:2])
    assert crops[2].any()
    assert not plain[2].any()
    assert torch.equal(draws[0].get_state(), draws[1].get_state())
    epochs = [views.Shuffled(images, 60, 1, 0, augment=True, mirror=mirror) for mirror in (True, False)]
    assert not torch.equal(*(next(iter(epoch))[0] for epoch in epochs))
    assert not torch.equal(views.augmented(images, 1).pixels, views.augmented(images, 1, mirror=False).pixels)


def test_a_view_of_common_corruptions_does_not_depend_on_batches_or_on_parts():
    draw = torch.Generator().manual_seed(4)
    images = Images(torch.randint(0, 256, (30, 3, 16, 16), generator=draw, dtype=torch.uint8), torch.arange(30) % 5)
    weather = corruption("snow,gaussian_noise,spatial")
    for view in (views.expand, views.append):
        whole = torch.cat([pixels for pixels, _ in view(images, weather, 30)])
        assert torch.equal(torch.cat([pixels for pixels, _ in view(images, weather, 7)]), whole)
        parts = [[pixels for pixels, _ in view(images, weather, 10).shard(index, 2)] for index in (0, 1)]
        assert torch.equal(torch.cat([part for pair in zip(*parts, strict=True) for part in pair]), whole)
    fewer = images.take(torch.arange(5, 12))
    some = torch.cat([pixels for pixels, _ in views.levels_view(fewer, weather, [3], 2)])
    every = torch.cat([pixels for pixels, _ in views.levels_view(images, weather, [3], 16)])
    assert torch.equal(some, every[5:12])


def test_epochs_draw_anew():
    images = Images(torch.full((40, 3, 16, 16), 128, dtype=torch.uint8), torch.zeros(40, dtype=torch.long))
    noise = corruption("gaussian_noise")
    one, again, other = (torch.cat([p for p, _ in views.Shuffled(images, 8, 1, epoch, noise)]) for epoch in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one.sort(0).values, other.sort(0).values)


def test_types_are_drawn_uniformly_and_then_their_levels():
    levels = views.degraded_levels(60_000, (6, 2, 1), torch.Generator().manual_seed(1))
    shares = levels.bincount(minlength=10)[1:] / 60_000
    want = torch.tensor([1 / 18] * 6 + [1 / 6] * 2 + [1 / 3])
    torch.testing.assert_close(shares, want, rtol=0, atol=0.006)
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    assert torch.equal(
        views.degraded_levels(50, (5, 5), generators[0]), torch.randint(1, 11, (50,), generator=generators[1])
    )


def test_of_many_levels_each_image_has_one():
    images = Images(torch.randint(0, 256, (30, 3, 16, 16), dtype=torch.uint8), torch.arange(30) % 5)
    many = corruption("brightness,contrast,fog")
    assert len(many) > views.MANY
    expanded, appended = views.expand(images, many, 8), views.append(images, many, 8)
    assert expanded.index.tolist() == list(range(30))
    assert expanded.levels.min() >= 1
    assert appended.index.tolist() == 2 * list(range(30))
    assert appended.levels.tolist() == [0] * 30 + expanded.levels.tolist()
    degraded = torch.cat([pixels for pixels, _ in appended])[30:]
    assert torch.equal(degraded, torch.cat([pixels for pixels, _ in expanded]))
