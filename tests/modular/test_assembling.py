"""Assembling: which module is taken, by the plain definition; files; several architectures and data; controls."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import deeppatch as dp
from deeppatch.artifacts import state_digest
from deeppatch.data.dataset import Data
from deeppatch.data.images import Images, to_float
from deeppatch.errors import StaleArtifact, UserError
from deeppatch.modular.assembling import SplitModel, assemble
from deeppatch.modular.assembly_controls import ASSEMBLED, BEST, ENSEMBLE, MEAN, compare_assembled
from deeppatch.modular.heads import Heads
from deeppatch.modular.layers import layers_to_split
from deeppatch.modular.modules import Modules
from deeppatch.zoo.classifier import Classifier

CLASSES = ("red", "green", "blue")


def images(count: int, seed: int) -> Images:
    """Noise in which the class's own channel is brighter."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    pixels = torch.randint(0, 150, (count, 3, 12, 10), generator=generator)
    pixels[torch.arange(count), labels] += 60
    return Images(pixels.to(torch.uint8), labels)


@pytest.fixture(scope="module")
def data() -> Data:
    return Data(images(30, 1), images(60, 2), images(90, 3), CLASSES, "colours")


def network(width: int, classes: int = 3) -> nn.Module:
    torch.manual_seed(width)
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes),
    )  # fmt: skip


def split(name: str, width: int, classes: tuple[str, ...] = CLASSES, *, heads: bool = True, **known) -> SplitModel:
    """A model with random modules, whose heads read the class's own logit with another slope for each class."""
    model = Classifier(network(width, len(classes)), (0.4, 0.5, 0.3), (0.2, 0.2, 0.2)).eval()
    layers = layers_to_split(model.network, torch.rand(2, 3, 12, 10))
    torch.manual_seed(width)
    kept = {layer.name: torch.rand(len(classes), layer.kernels) < 0.7 for layer in layers}
    for mask in kept.values():
        mask[:, 0] = True
    made = Heads(len(classes), len(classes))
    with torch.no_grad():
        for each in made.parameters():
            each.mul_(4)
    return SplitModel(
        model, Modules(state_digest(model.state_dict()), kept, made if heads else None), classes, name, **known
    )


def f1_by_hand(scores: list[float], labels: list[int], label: int) -> float:
    """Two times precision times recall over their sum, of `score above one half`."""
    pairs = [(score > 0.5, own == label) for score, own in zip(scores, labels, strict=True)]
    tp, fp, fn = pairs.count((True, True)), pairs.count((True, False)), pairs.count((False, True))
    return 2 * tp / (2 * tp + fp + fn) if tp else 0.0


def test_the_module_of_highest_f1_on_val_is_taken_for_each_class(data):
    models = [split("a", 5), split("b", 8), split("c", 11)]
    assembled = assemble(models, data, calibrate=False)
    pixels, labels = to_float(data.val.pixels), data.val.labels.tolist()
    for label, name in enumerate(CLASSES):
        found = {}
        for each in models:
            scores = each.modules.member(each.model, data.example, label)(pixels).tolist()
            found[each.name] = f1_by_hand(scores, labels, label)
        rows = assembled.table[assembled.table["class"] == name].set_index("model")
        assert (rows["f1"] / 100).to_dict() == pytest.approx(found)
        best = max(found, key=found.__getitem__)
        assert assembled.origins[label].model == best
        assert rows.index[rows["chosen"]].tolist() == [best]
        share = next(each for each in models if each.name == best).modules.shares()[label]
        assert rows.loc[best, "kernels_kept"] == pytest.approx(100 * share.item())
    assert len({origin.model for origin in assembled.origins}) > 1, "or nothing is assembled"
    expected = [
        next(each for each in models if each.name == origin.model).modules.member(
            next(each for each in models if each.name == origin.model).model, data.example, label
        )(pixels)
        for label, origin in enumerate(assembled.origins)
    ]
    assert torch.equal(assembled(pixels), torch.stack(expected, 1))


def test_scores_are_brought_to_a_common_scale_on_val(data):
    models = [split("a", 5), split("b", 8), split("c", 11)]
    raw, assembled = assemble(models, data, calibrate=False), assemble(models, data)
    labels = data.val.labels
    before = raw(to_float(data.val.pixels)).double().logit(1e-7)
    after = assembled(to_float(data.val.pixels)).double().logit(1e-7)
    for x, y in zip(before.numpy().T, after.numpy().T, strict=True):  # a straight line, that rises
        line = np.polyfit(x, y, 1)
        assert line[0] > 0
        np.testing.assert_allclose(np.polyval(line, x), y, atol=1e-3 * max(1.0, y.std()))
    best = F.cross_entropy(after, labels)
    assert best < F.cross_entropy(before, labels) - 0.01
    for column in range(3):  # no other scale or bias is better, but for the image that is counted in
        for factor, more in ((0.8, 0.0), (1.25, 0.0), (1.0, 0.3), (1.0, -0.3)):
            other = after.clone()
            other[:, column] = factor * other[:, column] + more
            assert F.cross_entropy(other, labels) > best - 1e-3, (column, factor, more)
    assert raw.origins == assembled.origins
    assert raw.table.equals(assembled.table)


def test_a_file_gives_the_same_classifier(data, tmp_path):
    models = [split("a", 5), split("b", 8)]
    assembled = assemble(models, data)
    path = dp.save(assembled, tmp_path / "assembled.safetensors")
    given = {"a": network(5), "b": network(8)}
    again = dp.load(path, given)
    pixels = to_float(data.test.pixels)
    assert torch.equal(again(pixels), assembled(pixels))
    assert (again.classes, again.origins, again.image_size) == (CLASSES, assembled.origins, (12, 10))
    assert dp.evaluate(again, data).equals(dp.evaluate(assembled, data))
    with pytest.raises(UserError, match=r"a network of one's own; give it: load\(path, \{'[ab]': network\}\)"):
        dp.load(path)
    with pytest.raises(StaleArtifact, match="is not the one that was split"):
        dp.load(path, {"a": network(6), "b": network(6)})


def test_a_network_of_the_zoo_is_built_again_by_its_name(data, tmp_path):
    digits = dp.load_data("digits", limit=20)
    model = dp.load_classifier("simcnn_svhn_weak", 10)
    layers = layers_to_split(model.network, digits.example)
    kept = {layer.name: torch.ones(10, layer.kernels, dtype=torch.bool) for layer in layers}
    modules = Modules(state_digest(model.state_dict()), kept, Heads(10, 10))
    made = assemble([SplitModel(model, modules, digits.classes, network="simcnn_svhn_weak")], digits)
    again = dp.load(dp.save(made, tmp_path / "assembled.safetensors"))
    assert torch.equal(again(digits.example), made(digits.example))


def test_classes_of_several_models_and_data_sets_make_a_new_task(data):
    """`one` is in two data sets: its qualified name says which is meant."""
    models = [
        split("a", 5, ("one", "two"), data="first"), split("b", 8, ("one", "three"), data="second"),
    ]  # fmt: skip
    task = Data(data.train, data.val, data.test, ("second:one", "two", "three"), "new")
    assembled = assemble(models, task)
    assert [(origin.model, origin.label, origin.outputs) for origin in assembled.origins] == [
        ("b", 0, 2), ("a", 1, 2), ("b", 1, 2),
    ]  # fmt: skip
    table = compare_assembled(assembled, models, task)
    assert table["network"].tolist() == [ASSEMBLED, ENSEMBLE], "no base model has all classes"
    pixels, labels = to_float(task.test.pixels), task.test.labels
    with torch.no_grad():
        first, second = (each.model(pixels).softmax(1) for each in models)
    by_hand = torch.stack([second[:, 0], first[:, 1], second[:, 1]], 1).argmax(1)
    percent = 100 * (by_hand == labels).double().mean().item()
    assert table.set_index("network").loc[ENSEMBLE, "accuracy"] == pytest.approx(percent)


def test_controls_are_the_base_models_their_mean_the_best_on_val_and_their_ensemble(data):
    models = [split("a", 5), split("b", 8, ("blue", "red", "green")), split("c", 11)]
    scratch = network(4).eval()
    assembled = assemble(models, data)
    table = compare_assembled(assembled, models, data, {"from scratch": scratch}).set_index("network")
    pixels, labels = to_float(data.test.pixels), data.test.labels
    with torch.no_grad():
        logits = [models[0].model(pixels), models[1].model(pixels)[:, [1, 2, 0]], models[2].model(pixels)]
        by_hand = [100 * (each.argmax(1) == labels).double().mean().item() for each in logits]
        together = torch.stack([each.softmax(1) for each in logits]).mean(0).argmax(1)
    assert table.index.tolist() == [ASSEMBLED, ENSEMBLE, "from scratch", BEST, MEAN, "a", "b", "c"]
    assert table.loc[["a", "b", "c"], "accuracy"].tolist() == pytest.approx(by_hand)
    assert table.loc[MEAN, "accuracy"] == pytest.approx(sum(by_hand) / 3)
    best = table.loc[["a", "b", "c"], "val_accuracy"].idxmax()
    assert table.loc[BEST, "accuracy"] == table.loc[best, "accuracy"]
    assert table.loc[ENSEMBLE, "accuracy"] == pytest.approx(100 * (together == labels).double().mean().item())
    own = 100 * (assembled(pixels).argmax(1) == labels).double().mean().item()
    assert table.loc[ASSEMBLED, "accuracy"] == pytest.approx(own)


def test_mistakes_are_named(data):
    with pytest.raises(UserError, match="class blue: no model has it .a: red, green."):
        assemble([split("a", 5, ("red", "green"))], data)
    with pytest.raises(UserError, match="two models are called a"):
        assemble([split("a", 5), split("a", 8)], data)
    with pytest.raises(UserError, match="b: there are 3 modules, and 2 names of classes"):
        SplitModel(network(5), split("a", 5).modules, ("red", "green"), "b")
    with pytest.raises(UserError, match="the modules of a have no heads"):
        assemble([split("a", 5, heads=False)], data)
