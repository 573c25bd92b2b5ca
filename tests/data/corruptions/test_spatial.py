from __future__ import annotations

import torch
from scipy import ndimage

from deeppatch.data.corruptions.draws import keys
from deeppatch.data.corruptions.spatial import BOUNDS, Spatial, settings, transformed


def batch(count: int, height: int, width: int) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(height))


def plain(image: torch.Tensor, parameters: list[float]) -> torch.Tensor:
    """One image: scipy's affine map about the centre, then brightness, then contrast about the grey mean."""
    angle, right, down, shear, zoom, brightness, contrast = parameters
    height, width = image.shape[1:]
    unit = min(height, width) / 32
    turn = torch.tensor([[1, 0], [0, 1]], dtype=torch.float64)
    radians = torch.tensor(angle, dtype=torch.float64).deg2rad()
    # (x, y) -> turned clockwise (y points down), zoomed, sheared
    turn = torch.stack([torch.stack([radians.cos(), -radians.sin()]), torch.stack([radians.sin(), radians.cos()])])
    forwards = torch.tensor([[1, shear], [0, 1]], dtype=torch.float64) @ ((1 + zoom) * turn)
    back = forwards.inverse()
    centre = torch.tensor([(width - 1) / 2, (height - 1) / 2], dtype=torch.float64)
    offset = centre - back @ (centre + unit * torch.tensor([right, down], dtype=torch.float64))
    rows = [[back[1, 1], back[1, 0]], [back[0, 1], back[0, 0]]]  # scipy has rows first
    channels = [
        ndimage.affine_transform(
            channel.double().numpy(), torch.tensor(rows).numpy(), offset.flip(0).numpy(), order=1, mode="grid-constant"
        )
        for channel in image
    ]
    found = torch.stack([torch.from_numpy(channel) for channel in channels]) + brightness / 255
    return (found.mean() + (found - found.mean()) * (1 + contrast)).clamp(0, 1).float()


def test_each_image_is_transformed_as_by_definition():
    for height, width in ((32, 32), (24, 40)):
        pixels = batch(10, height, width)
        rings = torch.arange(10) % 5 + 1
        drawn = settings(keys(torch.arange(10), 3, "test"), rings)
        found = transformed(pixels, drawn)
        for image, parameters, got in zip(pixels, drawn.tolist(), found, strict=True):
            torch.testing.assert_close(got, plain(image, parameters), rtol=0, atol=1e-5)


def test_no_change_returns_the_image_bit_for_bit():
    for size in ((32, 32), (33, 20)):
        pixels = batch(4, *size)
        assert torch.equal(transformed(pixels, torch.zeros(4, 7, dtype=torch.float64)), pixels)


def test_a_level_is_a_ring_and_neighbours_differ():
    bounds = torch.tensor(list(BOUNDS.values()), dtype=torch.float64)
    for ring in range(1, 6):
        share = settings(keys(torch.arange(500), ring, "ring"), torch.full((500,), ring)) / bounds
        assert (share.abs() >= (ring - 1) / 5).all()
        assert (share.abs() <= ring / 5).all()
        assert share.abs().mean().item() - (ring - 0.5) / 5 < 0.01
        assert 0.4 < (share > 0).double().mean().item() < 0.6
    spatial, pixels = Spatial(), batch(1, 16, 16).expand(50, -1, -1, -1)
    seeds = [spatial(pixels[:1], 3, torch.Generator().manual_seed(seed)) for seed in range(50)]
    assert len({tuple(each.flatten().tolist()) for each in seeds}) == 50


def test_levels_may_be_mixed_and_a_result_depends_on_the_image_alone():
    spatial, pixels, generator = Spatial((1, 4)), batch(9, 16, 20), torch.Generator().manual_seed(2)
    levels = torch.arange(9) % 3
    mixed = spatial(pixels, levels, generator)
    assert spatial.level_names == ("spatial-1", "spatial-4")
    assert torch.equal(mixed[levels == 0], pixels[levels == 0])
    for index in range(9):
        alone = spatial(pixels[index : index + 1], int(levels[index]), generator)
        assert torch.equal(alone[0], mixed[index])
