"""Measurements of modules against plain counts, for images that are not square."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from deeppatch.artifacts import state_digest
from deeppatch.data.dataset import Data
from deeppatch.data.images import Images
from deeppatch.errors import StaleArtifact
from deeppatch.modular.heads import Heads
from deeppatch.modular.measuring import ModuleMeasurements, measure_modules
from deeppatch.modular.modules import Modules, as_classifier

HEIGHT, WIDTH = 10, 18
# which kernels the modules of two classes keep
KEPT = {
    "0": torch.tensor([[True, True, False, False], [False, True, True, True]]),
    "3": torch.tensor([[True, False, False], [True, True, False]]),
}


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(3, 2),
    )  # fmt: skip


def images(seed: int, count: int) -> Images:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, HEIGHT, WIDTH), generator=generator, dtype=torch.uint8)
    return Images(pixels, torch.arange(count) % 2)


DATA = Data(images(1, 20), images(2, 24), images(3, 30), ("cat", "dog"))


def cost(first: int, second: int) -> int:
    """The oracle: multiply-adds per image with so many kernels in both convolutions."""
    return 27 * first * 8 * 16 + 9 * first * second * 6 * 14 + 2 * second


def correct(model: nn.Module, part: Images) -> float:
    model.eval()
    with torch.no_grad():
        guesses: Tensor = torch.stack([model(image.unsqueeze(0) / 255).argmax() for image in part.pixels.float()])
    return (guesses == part.labels).double().mean().item()


def made(*, heads: bool) -> tuple[nn.Module, Modules]:
    torch.manual_seed(1)
    model = network()
    base = state_digest(as_classifier(model).state_dict())
    # in the order of a file, which is not that of the network
    return model, Modules(base, dict(reversed(KEPT.items())), Heads(2, 2) if heads else None)


@pytest.mark.parametrize("heads", [False, True], ids=["logits", "heads"])
@pytest.mark.parametrize("size", [7, 256])
def test_kernels_costs_and_accuracies_are_those_of_plain_counts(size, heads):
    model, modules = made(heads=heads)
    found = measure_modules(model, modules, DATA, batch_size=size)
    assert [layer.name for layer in found.layers] == ["0", "3"]
    assert [counts.tolist() for counts in found.kept] == [[2, 3], [1, 2]]
    assert found.layer_shares().tolist() == torch.tensor([[2 / 4, 1 / 3], [3 / 4, 2 / 3]]).tolist()
    assert (found.kernels, found.test_images) == (7, 30)
    assert (found.multiply_adds, found.module_multiply_adds) == (cost(4, 3), [cost(2, 1), cost(3, 2)])
    assert found.multiply_adds_percent == pytest.approx(50 * (cost(2, 1) + cost(3, 2)) / cost(4, 3))
    assert found.mean_share == pytest.approx((3 / 7 + 5 / 7) / 2)
    assert found.mean_dissimilarity == pytest.approx(1 - 2 / 6)
    assert found.strong_accuracy == pytest.approx(correct(model, DATA.test))
    assert found.val_accuracy == pytest.approx(correct(model, DATA.val))
    assert found.composed_accuracy == pytest.approx(correct(modules.composed(model, DATA.example), DATA.test))


def test_the_table_has_a_row_for_each_module():
    table = measure_modules(*made(heads=False), DATA).table()
    assert list(table.columns) == ["class", "0", "3", "kernels_kept_percent", "multiply_adds", "multiply_adds_percent"]
    assert table[["class", "0", "3"]].to_numpy().tolist() == [["cat", 2, 1], ["dog", 3, 2]]
    assert table["kernels_kept_percent"].tolist() == pytest.approx([300 / 7, 500 / 7])
    assert table["multiply_adds_percent"].tolist() == pytest.approx(
        [100 * cost(2, 1) / cost(4, 3), 100 * cost(3, 2) / cost(4, 3)]
    )


def test_kernels_of_tied_convolutions_count_in_each(tiny):
    kept = {"conv1+conv2": torch.ones(5, 8, dtype=torch.bool), "conv3": torch.ones(5, 12, dtype=torch.bool)}
    part = Images(torch.randint(0, 256, (10, 3, 12, 12), dtype=torch.uint8), torch.arange(10) % 5)
    modules = Modules(state_digest(tiny.state_dict()), kept)
    found: ModuleMeasurements = measure_modules(tiny, modules, Data(part, part, part, tuple("abcde")))
    assert found.kernels == 8 + 8 + 12
    assert (found.mean_share, found.mean_dissimilarity) == (1, 0)
    assert found.module_multiply_adds == [found.multiply_adds] * 5
    assert found.composed_accuracy == found.strong_accuracy


def test_the_model_is_left_as_it_was():
    model, modules = made(heads=False)
    before = state_digest(model.state_dict())
    model[2].eval()
    modes = [module.training for module in model.modules()]
    measure_modules(model, modules, DATA)
    assert state_digest(model.state_dict()) == before
    assert [module.training for module in model.modules()] == modes


def test_modules_of_another_model_are_refused():
    _, modules = made(heads=False)
    with pytest.raises(StaleArtifact, match="other base weights"):
        measure_modules(network(), modules, DATA)
