"""Evaluation against plain loops over images."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deeppatch.data import views
from deeppatch.data.corruptions import corruption
from deeppatch.data.dataset import Data
from deeppatch.data.images import Images, to_float
from deeppatch.errors import UserError
from deeppatch.evaluation import CorrectPredictions, correct_by_level, correct_predictions, evaluate, oracle_router


@pytest.fixture
def wide() -> Images:
    """Forty images of 20x28 pixels in three classes."""
    pixels = torch.randint(0, 256, (40, 3, 20, 28), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    return Images(pixels, torch.arange(40) % 3)


class Net(nn.Module):
    """Tells three classes apart, and has dropout and normalisation, which heed the mode."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.LazyLinear(3)
        )
        self.layers(torch.rand(4, 3, 20, 28))

    def forward(self, pixels):
        return self.layers(pixels)


def fog(pixels, generator):
    return pixels * 0.5 + 0.5 * torch.rand(pixels.shape, generator=generator)


def dark(pixels, generator):
    return pixels / 3


def one_by_one(model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor) -> list[bool]:
    """The oracle: each image by itself, in eval mode."""
    model.eval()
    with torch.no_grad():
        found = [model(image.unsqueeze(0)).argmax().item() for image in pixels]
    return [guess == label for guess, label in zip(found, labels.tolist(), strict=True)]


@pytest.mark.parametrize("size", [1, 7, 256])
def test_each_level_is_measured_image_by_image(wide, size):
    model, levels = Net(1), corruption({"dark": dark, "darker": lambda p, _g: p / 9})
    want = [one_by_one(model, levels(to_float(wide.pixels), level), wide.labels) for level in range(3)]
    assert correct_by_level(model, wide, levels, batch_size=size).tolist() == want
    assert correct_by_level(model, wide, None, batch_size=size).tolist() == want[:1]


def test_the_stream_is_the_mixed_view(wide):
    model, levels = Net(1), corruption(fog)
    found = correct_predictions(model, wide, levels, batch_size=7, seed=5)
    stream = views.mixed_stream(wide, levels, 7, 5)
    want = [each for pixels, labels in stream for each in one_by_one(model, pixels, labels)]
    assert found.in_stream.tolist() == want
    assert torch.equal(found.by_level, correct_by_level(model, wide, levels, batch_size=7))


def test_the_oracle_takes_the_patch_for_degraded_images_only(wide):
    draws = [torch.rand(3, 40) < 0.5 for _ in range(2)]
    original, patched = (CorrectPredictions(draw, draw[0]) for draw in draws)
    stream = views.mixed_stream(wide, corruption({"a": fog, "b": dark}), 7, 5)
    found = oracle_router(original, patched, stream)
    assert torch.equal(found.by_level, torch.stack([draws[0][0], draws[1][1], draws[1][2]]))
    clean = stream.levels == 0
    assert torch.equal(found.in_stream[clean], original.in_stream[clean])
    assert torch.equal(found.in_stream[~clean], patched.in_stream[~clean])


@pytest.mark.parametrize("size", [1, 7, 256])
def test_the_table_has_a_row_for_each_model_and_a_column_for_each_view(wide, size):
    models, levels = {"first": Net(1), "second": Net(2)}, corruption({"fog": fog, "dark": dark})
    table = evaluate(models, wide, levels, batch_size=size, seed=5)
    assert list(table.columns) == ["clean", "fog", "dark", "mean", "mixed", "repair", "break"]
    assert (list(table.index), table.index.name) == (["first", "second"], "model")
    found = {name: correct_predictions(model, wide, levels, batch_size=size, seed=5) for name, model in models.items()}
    for name, each in found.items():
        want = [100 * row.double().mean().item() for row in (*each.by_level, each.by_level[1:], each.in_stream)]
        assert table.loc[name].tolist()[:5] == pytest.approx(want)
    before, after = found["first"].in_stream, found["second"].in_stream
    assert table["repair"].tolist() == pytest.approx([0, 100 * (after & ~before).sum().item() / 40])
    assert table["break"].tolist() == pytest.approx([0, 100 * (before & ~after).sum().item() / 40])
    changed = table.loc["first", "mixed"] + table["repair"] - table["break"]
    assert changed.tolist() == pytest.approx(table["mixed"].tolist())
    swapped = evaluate(models, wide, levels, batch_size=size, seed=5, compare="second")
    assert swapped.loc["first", "repair"] == pytest.approx(table.loc["second", "break"])


def test_one_model_clean_images_and_the_test_part_of_data(wide):
    data = Data.of((wide.pixels[:20], wide.labels[:20]), (wide.pixels, wide.labels), classes=3)
    table = evaluate(Net(1), data)
    assert table.to_dict("index") == {
        "model": {"clean": 100 * sum(one_by_one(Net(1), to_float(wide.pixels), wide.labels)) / 40}
    }
    both = evaluate({"a": Net(1), "b": Net(2)}, data)
    assert list(both.columns) == ["clean", "repair", "break"]


def test_a_model_is_measured_in_eval_mode_and_left_as_it_was(wide):
    model = Net(1)
    model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    table = evaluate(model, wide, fog)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert evaluate(model, wide, fog).equals(table)


def test_grey_images_and_a_plain_callable_do(wide):
    grey = Data.of((wide.pixels[:, :1], wide.labels), (wide.pixels[:, :1], wide.labels))
    assert list(evaluate(Net(1), grey, dark).columns) == ["clean", "dark", "mean", "mixed"]
    assert (
        evaluate(Net(1), grey, lambda p, _g: p[:, :1]).loc["model", "corrupted"]
        == evaluate(Net(1), grey).loc["model", "clean"]
    )


def test_models_that_are_not_there_are_named(wide):
    with pytest.raises(UserError, match="compare='c': there are the models a, b"):
        evaluate({"a": Net(1), "b": Net(2)}, wide, compare="c")
    with pytest.raises(UserError, match="none"):
        evaluate({}, wide)
