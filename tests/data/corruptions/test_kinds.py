"""The 19 common corruptions against their plain definitions, on the same random numbers."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from deeppatch.data.corruption_names import COMMON
from deeppatch.data.corruptions import CommonCorruption, constants, degrade
from deeppatch.data.corruptions.draws import Draws, fingerprints, keys
from deeppatch.data.corruptions.frost import texture_side, textures
from deeppatch.data.corruptions.kinds import KINDS
from deeppatch.data.corruptions.noise import alias_tables

spec = importlib.util.spec_from_file_location("plain", Path(__file__).with_name("plain.py"))
plain = importlib.util.module_from_spec(spec)
spec.loader.exec_module(plain)

SIZES = [(32, 32), (48, 64), (33, 47)]
SETS = {"cifar": constants.CIFAR, "imagenet": constants.IMAGENET}
BY_MOMENTS = {"shot_noise"}  # its table draws other counts from the same numbers than a library does
TESTED = [name for name in COMMON if name not in BY_MOMENTS]


def pictures(count: int, height: int, width: int) -> torch.Tensor:
    """Smooth pictures with flat, black and white regions and some detail, uint8."""
    draw = torch.Generator().manual_seed(height * width)
    smooth = torch.rand(count, 3, 5, 6, generator=draw) * 1.6 - 0.3
    smooth = torch.nn.functional.interpolate(smooth, size=(height, width), mode="bilinear", align_corners=True)
    detail = 0.1 * torch.randn(count, 3, height, width, generator=draw)
    detail[:, :, : height // 3] = 0
    found = (smooth + detail).clamp(0, 1)
    found[0, :, :4, :4] = 0.5  # grey
    return (found * 255).round().to(torch.uint8)


def drawn(name: str, pixels: torch.Tensor, row: tuple[float, ...]) -> tuple[torch.Tensor, ...]:
    kind, size = KINDS[name], pixels.shape[-2:]
    return kind.draw(Draws(keys(fingerprints(pixels), 7, name)), *size, row) if kind.draw else ()


def oracle(name: str, image: torch.Tensor, row: tuple[float, ...], values: list[np.ndarray]) -> np.ndarray:
    """Call the plain definition with what was drawn for one image."""
    if name in ("gaussian_noise", "speckle_noise", "impulse_noise", "spatter", "snow"):
        values = [values[0].transpose(1, 2, 0), *values[1:]]
    if name == "frost":
        height, width = image.shape[1:]
        side = texture_side(height, width)
        texture = textures(side).reshape(5, side, side, 3)[values[0]]
        values = [texture[values[1][0] :, values[1][1] :][:height, :width]]
    return getattr(plain, name)(image.permute(1, 2, 0).numpy(), row, *values)


def check(name: str, pixels: torch.Tensor, row: tuple[float, ...]) -> None:
    """Differences from the definition: at most one level, at most 12 % of the values."""
    values = drawn(name, pixels, row)
    found = KINDS[name].apply(pixels, row, *values)
    assert found.dtype == torch.uint8
    for index, image in enumerate(pixels):
        want = oracle(name, image, row, [value[index].numpy() for value in values])
        difference = np.abs(found[index].permute(1, 2, 0).numpy().astype(int) - want)
        assert difference.max() <= 1, (row, difference.max())
        assert (difference > 0).mean() <= 0.12, (row, (difference > 0).mean())
        assert (found[index] != image).any() or name in ("glass_blur", "zoom_blur", "spatter"), row


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", TESTED)
def test_a_batch_is_degraded_as_each_image_by_definition(name, size):
    pixels = pictures(2, *size)
    for row in constants.constants(name, *size):
        check(name, pixels, row)


@pytest.mark.parametrize("name", [name for name in TESTED if name not in ("glass_blur", "fog", "spatter")])
def test_constants_of_large_images_on_small_ones(name):
    pixels = pictures(2, 48, 64)
    for row in constants.IMAGENET[name]:
        check(name, pixels, row)


@pytest.mark.parametrize("row", [row for row in constants.IMAGENET["glass_blur"] if row[1] > 1])
def test_chains_of_copies_behind_glass(row):
    check("glass_blur", pictures(1, 48, 48), row)


@pytest.mark.slow
@pytest.mark.parametrize("name", TESTED)
def test_large_images(name):
    pixels = pictures(1, 224, 224)
    for row in constants.constants(name, 224, 224)[:: 2 if name in ("glass_blur", "spatter") else 1]:
        check(name, pixels, row)


def test_glass_and_zoom_change_pictures():
    pixels = pictures(2, 32, 32)
    for name in ("glass_blur", "zoom_blur"):
        assert all((degrade(pixels, name, severity) != pixels).any() for severity in range(1, 6))
    assert (degrade(pictures(8, 32, 32), "spatter", 1) != pictures(8, 32, 32)).any()


@pytest.mark.parametrize("name", COMMON)
def test_a_result_depends_on_the_image_and_the_seed_only(name):
    pixels = pictures(150, 32, 32)  # more than are degraded at once
    for severity in (1, 5):
        whole = degrade(pixels, name, severity, 3)
        for part in (slice(0, 1), slice(90, 93), slice(149, 150)):
            assert torch.equal(degrade(pixels[part], name, severity, 3), whole[part])
        order = torch.randperm(150, generator=torch.Generator().manual_seed(1))[:40]
        assert torch.equal(degrade(pixels[order], name, severity, 3), whole[order])
        assert torch.equal(degrade(pixels, name, severity, 4), whole) == (KINDS[name].draw is None)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    assert torch.equal(degrade(pixels, name, 5, 3), whole)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", COMMON)
def test_severities_may_be_mixed_in_a_batch(name):
    pixels = pictures(12, 32, 32) / 255
    levels = torch.arange(12) % 6
    generator = torch.Generator().manual_seed(5)
    mixed = CommonCorruption(name)(pixels, levels, generator)
    for level in range(6):
        alone = CommonCorruption(name)(pixels, level, generator)
        assert torch.equal(mixed[levels == level], alone[levels == level])
    assert torch.equal(mixed[0], pixels[0])
    assert torch.equal((mixed * 255).round() / 255, mixed), "8-bit values"
    some = CommonCorruption(name, (2, 5))
    assert torch.equal(some(pixels, 2, generator), CommonCorruption(name)(pixels, 5, generator))


@pytest.mark.parametrize("name", COMMON)
@pytest.mark.parametrize("size", [(8, 8), (32, 32), (65, 40)])
def test_flat_images_give_no_nonsense(name, size):
    flat = torch.tensor([0, 128, 255], dtype=torch.uint8).view(3, 1, 1, 1).expand(-1, 3, *size)
    before = flat.clone()
    for severity in range(1, 6):
        found = degrade(flat, name, severity)
        assert found.shape == flat.shape
        assert found.dtype == torch.uint8
        if name.endswith("blur") and (name != "defocus_blur" or max(size) <= 64):  # whose kernels do not sum to 1
            assert torch.equal(found, flat), "a blur keeps flat images"
    assert torch.equal(flat, before), "the pixels given are left alone"


def test_pixels_stay_the_same_within_autocast():
    pixels = pictures(3, 32, 32)
    for name in ("zoom_blur", "snow", "elastic_transform"):
        want = degrade(pixels, name, 3)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(degrade(pixels, name, 3), want)


# --- laws


@pytest.mark.parametrize("white", [500, 100, 50, 60, 5, 3])
def test_tables_of_shot_noise_hold_the_poisson_law(white):
    tables = alias_tables(white).view(np.uint32).astype(np.int64)
    columns = tables.shape[1]
    for grey in (0, 1, 77, 200, 255):
        first = (tables[grey] >> 16) / 65536
        found = np.zeros(256)
        np.add.at(found, tables[grey] & 255, first / columns)
        np.add.at(found, (tables[grey] >> 8) & 255, (1 - first) / columns)
        counts = np.arange(2000)
        want = np.zeros(256)
        levels = np.floor(255 * np.clip(counts / white, 0, 1) + 1e-6).astype(int)
        np.add.at(want, levels, stats.poisson.pmf(counts, white * grey / 255))
        np.testing.assert_allclose(found, want, atol=2e-5)


def moments(name: str, grey: int, row: tuple[float, ...], count: int = 340) -> torch.Tensor:
    """A million values of one grey level, degraded."""
    pixels = torch.full((count, 3, 32, 32), grey, dtype=torch.uint8)
    pixels[:, 0, 0, :2] = torch.arange(2 * count).view(count, 2).remainder(251).to(torch.uint8)  # to tell images apart
    values = KINDS[name].draw(Draws(keys(torch.arange(count), 1, name)), 32, 32, row)
    return KINDS[name].apply(pixels, row, *values)[:, 1:].double()


@pytest.mark.parametrize("grey", [64, 128, 192])
@pytest.mark.parametrize("name", ["gaussian_noise", "speckle_noise"])
def test_noise_has_the_mean_and_the_variance_of_its_law(name, grey):
    row = {"gaussian_noise": (0.08,), "speckle_noise": (0.1,)}[name]
    x = grey / 255
    variance = {"gaussian_noise": row[0] ** 2, "speckle_noise": (row[0] * x) ** 2}[name]
    values = moments(name, grey, row)
    count = values.numel()
    # truncation takes half a level on average, and adds the variance of a uniform remainder
    deviation = (variance * 255**2 + 1 / 12) ** 0.5
    assert abs(values.mean().item() + 0.5 - grey) < 4 * deviation / count**0.5 + 0.02
    assert values.std().item() == pytest.approx(deviation, rel=4 / (2 * count) ** 0.5 + 0.004)


@pytest.mark.parametrize("grey", [64, 128, 192])
@pytest.mark.parametrize("white", [250, 60])
def test_shot_noise_has_the_mean_and_the_variance_of_truncated_counts(white, grey):
    counts = np.arange(1000)
    levels = np.floor(255 * np.clip(counts / white, 0, 1) + 1e-6)
    share = stats.poisson.pmf(counts, white * grey / 255)
    mean, square = (share * levels).sum(), (share * levels**2).sum()
    deviation, values = (square - mean**2) ** 0.5, moments("shot_noise", grey, (white,))
    assert abs(values.mean().item() - mean) < 4 * deviation / values.numel() ** 0.5
    assert values.std().item() == pytest.approx(deviation, rel=4 / (2 * values.numel()) ** 0.5 + 0.001)


def test_impulses_are_as_many_as_said_and_channels_are_independent():
    values = moments("impulse_noise", 100, (0.07,))
    share = values.numel() ** -0.5 * 4 * 0.035**0.5
    assert (values == 255).double().mean().item() == pytest.approx(0.035, abs=share)
    assert (values == 0).double().mean().item() == pytest.approx(0.035, abs=share)
    hit = (values != 100).double()
    assert (hit[:, 0] * hit[:, 1]).mean().item() == pytest.approx(0.07**2, rel=0.05)


def test_numbers_are_uniform_and_normal_and_streams_differ():
    draws = Draws(keys(torch.arange(3000), 1, "law"))
    uniform, normal = draws.uniform(100).flatten().double(), draws.normal(100).flatten().double()
    assert stats.kstest(uniform, "uniform").pvalue > 0.001
    assert stats.kstest(normal, "norm").pvalue > 0.001
    angles = draws.between(-45, 45).flatten()
    assert stats.kstest(angles, stats.uniform(-45, 90).cdf).pvalue > 0.001
    counts = np.bincount(draws.integers(-2, 2, 40).flatten() + 2)
    assert stats.chisquare(counts).pvalue > 0.001
    rows = Draws(keys(torch.arange(2000), 1, "law")).normal(64).double()
    correlation = torch.corrcoef(rows[:200])
    assert (correlation - torch.eye(200)).abs().max() < 0.75
    assert len({tuple(row[:3].tolist()) for row in rows}) == 2000


def test_one_bit_of_an_image_changes_its_numbers():
    pixels = pictures(1, 32, 32).expand(64, -1, -1, -1).clone()
    for index in range(1, 64):
        pixels[index].view(-1)[index * 48] ^= 1 << (index % 8)
    assert len(set(fingerprints(pixels).tolist())) == 64


def test_fog_has_both_ends_and_the_spectrum_of_the_definition():
    from deeppatch.data.corruptions.weather import plasma

    values = torch.rand(30, 32 * 32 - 1, generator=torch.Generator().manual_seed(1)) * 2 - 1
    maps = plasma(values, 32, 2)
    assert maps.amin() == 0
    assert maps.amax() == 1
    for one, drawn_for in zip(maps[:3].numpy(), values[:3].numpy(), strict=True):
        np.testing.assert_allclose(one, plain.plasma(drawn_for, 32, 2), atol=1e-5)


def test_types_have_the_published_constants():
    assert tuple(constants.CIFAR) == tuple(constants.IMAGENET) == COMMON == tuple(KINDS)
    assert constants.constants("jpeg_compression", 32, 64) == ((80,), (65,), (58,), (50,), (40,))
    assert constants.constants("jpeg_compression", 65, 32) == ((25,), (18,), (15,), (10,), (7,))
    assert [int(32 * row[0]) for row in constants.CIFAR["pixelate"]] == [30, 28, 27, 24, 20]
    assert [int(224 * row[0]) for row in constants.IMAGENET["pixelate"]] == [134, 112, 89, 67, 56]
    assert all(len(rows) == 5 for each in SETS.values() for rows in each.values())


def test_several_threads_degrade_within_inference_mode():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    pixels = torch.randint(0, 256, (400, 3, 32, 32), dtype=torch.uint8)
    outside = degrade(pixels, "fog", 3)
    with torch.inference_mode():
        assert torch.equal(degrade(pixels.clone(), "fog", 3), outside)
    torch.set_num_threads(threads)
