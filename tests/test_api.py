"""The public API: lazy names, docstrings whose examples run, files for what it makes, and silence."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import deeppatch as dp
from deeppatch.errors import StaleArtifact, UserError
from deeppatch.hybrid.selection import supervised
from deeppatch.modular.gradient_search import GradientSearch

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "src"
NAMES = sorted(set(dp.__all__) - {"__version__"})
WITH_EXAMPLES = sorted(
    ".".join(path.relative_to(SRC).with_suffix("").parts)
    for path in (SRC / "deeppatch").rglob("*.py")
    if path.name != "__init__.py" and re.search(r"^\s*>>> ", path.read_text(), re.MULTILINE)
)


def network(size: int = 12, classes: int = 3) -> nn.Module:
    """Return a small network for grey or coloured images of any size."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes),
    )  # fmt: skip


def tensors(count: int, channels: int = 3, height: int = 14, width: int = 18) -> tuple[Tensor, Tensor]:
    """Return random images with labels of three classes."""
    draw = torch.Generator().manual_seed(count)
    return torch.rand((count, channels, height, width), generator=draw), torch.arange(count) % 3


@pytest.fixture
def data() -> dp.Data:
    return dp.Data.of(tensors(60), tensors(30), classes=["cat", "dog", "owl"])


def test_importing_the_package_imports_nothing_else():
    code = "import sys, deeppatch; print(deeppatch.__version__, len(dir(deeppatch))); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=SRC, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [dp.__version__, str(len(dp.__all__))]


def test_an_unknown_name_is_refused_with_those_that_there_are():
    with pytest.raises(AttributeError, match="rank_filters"):
        dp.rank_filter  # noqa: B018


def test_type_checkers_know_the_same_names():
    tree = ast.parse((SRC / "deeppatch" / "__init__.py").read_text())
    (checked,) = [node for node in tree.body if isinstance(node, ast.If)]
    known = {f"{node.module}.{alias.name}" for node in checked.body for alias in node.names}
    assert known == {f"deeppatch.{module}.{name}" for name, module in dp._PUBLIC.items()}
    assert (SRC / "deeppatch" / "py.typed").is_file()


@pytest.mark.parametrize("name", NAMES)
def test_every_public_object_is_documented_and_typed(name):
    thing = getattr(dp, name)
    text = inspect.getdoc(thing) or ""
    assert ">>> " in text, "an example"
    assert "Raises:" in text or name == "Data", "what goes wrong"
    assert thing.__module__ in WITH_EXAMPLES
    if inspect.isfunction(thing):
        signature = inspect.signature(thing)
        assert "Args:" in text
        assert signature.return_annotation is not inspect.Parameter.empty
        assert all(each.annotation is not inspect.Parameter.empty for each in signature.parameters.values())
        described = re.split(r"\n(?:Returns|Raises):", text.split("Args:")[1])[0]
        assert [each for each in signature.parameters if not re.search(rf"\b{each}\b", described)] == []


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_the_examples_of_docstrings_run(module, monkeypatch):
    monkeypatch.chdir(ROOT)
    results = doctest.testmod(importlib.import_module(module), verbose=False)
    assert results.attempted
    assert results.failed == 0


def test_a_repair_on_grey_images_of_any_size_prints_nothing(capfd):
    def salt(pixels: Tensor, generator: torch.Generator) -> Tensor:
        assert pixels.shape[1:] == (3, 14, 18)
        assert pixels.min() >= 0
        assert pixels.max() <= 1
        return pixels + 0.3 * torch.randn(pixels.shape, generator=generator, device=pixels.device)

    model = dp.Classifier(network())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    train, test = (DataLoader(TensorDataset(*tensors(count, channels=1)), 7) for count in (60, 30))
    data = dp.Data.of(train, test)
    ranking = dp.rank_filters(model, data, salt, method="taylor")
    patch = dp.train_patch(model, data, salt, ranking.choose(ratio=0.25), epochs=1)
    switched = dp.fit_switch(model, patch, data, salt)
    table = dp.evaluate({"before": model, "switched": switched}, data, salt)
    assert {"before", "switched"} == set(table.index)
    assert (table.to_numpy() >= 0).all()
    assert (table.to_numpy() <= 100).all()
    assert all((value == before[key]).all() for key, value in model.state_dict().items()), "the model is not changed"
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


@pytest.mark.parametrize("form", ["tensors", "dataset", "loader"])
def test_all_forms_of_data_give_the_same(form):
    pixels, labels = tensors(60)
    given = {
        "tensors": (pixels, labels), "dataset": TensorDataset(pixels, labels),
        "loader": DataLoader(TensorDataset(pixels, labels), 7),
    }[form]  # fmt: skip
    data = dp.Data.of(given, tensors(30))
    expected = dp.Data.of((pixels, labels), tensors(30))
    for part in ("train", "val", "test"):
        assert (getattr(data, part).pixels == getattr(expected, part).pixels).all()
        assert (getattr(data, part).labels == getattr(expected, part).labels).all()


def test_callbacks_run_in_eval_mode_and_the_mode_returns(data):
    model = dp.Classifier(nn.Sequential(*network()[:2], nn.Dropout(0.5), *network()[2:])).train()
    modes = []

    def note(pixels: Tensor, generator: torch.Generator) -> Tensor:
        modes.append(model.training)
        return pixels

    first = dp.evaluate(model, data, note)
    assert first.equals(dp.evaluate(model, data, note)), "dropout is off"
    assert not any(modes)
    assert model.training


def test_training_never_mirrors_data_whose_classes_depend_on_it():
    from deeppatch import training

    digits = dp.load_data("digits", limit=60)
    assert not digits.mirror
    (plain,) = training.clean_epochs(digits.train, epochs=1, augment=True, mirror=digits.mirror)
    assert not plain.mirror


def made(what: str, data: dp.Data, model: dp.Classifier) -> object:
    """Return one of the things that have a file."""
    blur = dp.corruption("gaussian-blur")
    if what == "ranking":
        return dp.rank_filters(model, data, blur, method="taylor")
    if what == "features":
        return dp.influence(model, data, k=3).indices()
    if what == "selection":
        return dp.choose_labels(model, (tensors(20)[0] * 255).byte(), data, budget=3, method="random")
    if what == "modules":
        return dp.split_into_modules(model, data, method=GradientSearch(epochs=1))
    patch = dp.train_patch(model, data, blur, {"0": [1, 4]}, epochs=1)
    return patch if what == "patch" else dp.fit_switch(model, patch, data, blur, vote=what == "voting")


@pytest.mark.parametrize("what", ["ranking", "features", "selection", "patch", "switched", "voting", "modules"])
def test_what_is_saved_is_read_back(what, data, tmp_path):
    model = dp.Classifier(network(), classes=data.classes).eval()
    thing = made(what, data, model)
    path = tmp_path / f"thing{'.json' if what in ('ranking', 'features') else '.safetensors'}"
    assert dp.save(thing, path) == path
    again = dp.load(path, model)
    assert type(again) is type(thing)
    if what == "ranking":
        assert again == thing
    elif what in ("switched", "voting"):
        assert torch.equal(again(data.test.pixels), thing(data.test.pixels))
        assert (again.router.kind, again.vote) == (thing.router.kind, what == "voting")
        router = dp.load(dp.save(thing.router, tmp_path / "router.safetensors"))
        assert torch.equal(router.threshold, thing.router.threshold)
    elif what == "features":
        assert torch.equal(again, thing)
    else:
        assert again.to_bytes() == thing.to_bytes()


def test_weights_go_into_the_network_and_keep_their_classes(data, tmp_path):
    model = dp.Classifier(network(), mean=(0.4,) * 3, std=(0.2,) * 3, classes=data.classes).eval()
    path = dp.save(model, tmp_path / "model.safetensors")
    fresh = network()
    nn.init.zeros_(fresh[-1].weight)
    again = dp.load(path, fresh)
    pixels = torch.rand(4, 3, 9, 11)
    assert torch.equal(again(pixels), model(pixels))
    assert again.classes == data.classes
    assert again.normalize.mean.flatten().tolist() == pytest.approx([0.4] * 3)
    with pytest.raises(UserError, match="second argument"):
        dp.load(path)
    with pytest.raises(StaleArtifact, match="another network"):
        dp.load(path, network(classes=5))


@pytest.mark.parametrize("content", [b"", b"{", b"\x00" * 40, b'{"1": 2}'])
@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_damaged_files_are_one_line(content, suffix, tmp_path):
    path = tmp_path / f"thing{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError) as failure:
        dp.load(path, network())
    assert str(path) in str(failure.value)
    assert "\n" not in str(failure.value)


def test_a_file_that_is_absent_and_a_wrong_suffix_are_told(tmp_path, data):
    with pytest.raises(UserError, match="absent.safetensors"):
        dp.load(tmp_path / "absent.safetensors", network())
    with pytest.raises(UserError, match="model.safetensors"):
        dp.save(dp.Classifier(network()), tmp_path / "model.pt")
    with pytest.raises(UserError, match="there is no file for this"):
        dp.save("weights", tmp_path / "model.safetensors")


def test_the_library_logs_under_its_own_name(data, caplog):
    with caplog.at_level(logging.INFO, "deeppatch"):
        dp.train_patch(dp.Classifier(network()), data, dp.corruption("gaussian-blur"), {"0": [1]}, epochs=1)
    assert any("epoch 1" in record.message for record in caplog.records)
    assert {record.name.split(".")[0] for record in caplog.records} == {"deeppatch"}


def dark(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Darken pixels."""
    return pixels / 3


class Returns(nn.Module):
    """A model that returns the same for all images."""

    def __init__(self, value: object) -> None:
        super().__init__()
        self.value = value

    def forward(self, pixels: Tensor) -> object:
        return self.value(len(pixels)) if callable(self.value) else self.value


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Returns((1, 2)), "returned tuple"),
        (Returns(torch.zeros), r"returned \(2,\)"),
        (Returns(lambda count: torch.zeros(count, 2)), "2 outputs, the data have 3 classes"),
        (Returns(lambda count: torch.full((count, 3), torch.nan)), "not finite"),
        (nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten()), "fails on float pixels"),
    ],
)
@pytest.mark.parametrize(
    "call",
    [
        dp.evaluate,
        lambda model, data: dp.rank_filters(model, data, dark, method="taylor"),
        lambda model, data: dp.train_patch(model, data, dark, {"0": [0]}),
        lambda model, data: dp.finetune(model, data, dark),
    ],
    ids=["evaluate", "rank_filters", "train_patch", "finetune"],
)
def test_what_is_no_classifier_of_the_data_is_refused(model, reason, call, data):
    with pytest.raises(UserError, match=reason):
        call(model, data)


@pytest.mark.parametrize(
    ("channels", "reason"),
    [({"nope": [0]}, "no such convolution; it has 0, 2"), ({"0": [99]}, "from 0 to 5"), ({"0": [1, 1]}, "each once"),
     ({"0": []}, "each once"), ({}, "no channel")],
)  # fmt: skip
def test_channels_that_cannot_be_patched_are_refused(channels, reason, data):
    with pytest.raises(UserError, match=reason):
        dp.train_patch(dp.Classifier(network()), data, dark, channels)


def test_a_grouped_convolution_is_refused_as_such(data):
    grouped = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, groups=2), *network()[1:])
    with pytest.raises(UserError, match="1: grouped convolutions are not patched; choose from 0, 3"):
        dp.train_patch(dp.Classifier(grouped), data, dark, {"1": [0]})


@pytest.mark.parametrize("train", [
    lambda model, data: dp.finetune(model, data, dark, epochs=1, lr=100.0, weight_decay=1e38),
    lambda model, data: dp.train_patch(model, data, dark, {"0": [0]}, epochs=1, lr=100.0, weight_decay=1e38),
])  # fmt: skip
def test_a_training_that_diverges_in_its_last_step_is_refused(train, data):
    with pytest.raises(UserError, match="not finite"):
        train(dp.Classifier(network()), data)


@pytest.mark.parametrize("name", ["clean", "mean", "mixed"])
def test_a_level_with_the_name_of_another_column_is_refused(name):
    with pytest.raises(UserError, match=name):
        dp.corruption({name: dark})


def test_black_and_white_pixels_keep_their_contrast():
    pixels, labels = tensors(30)
    data = dp.Data.of((pixels > 0.5, labels), (pixels > 0.5, labels))
    assert data.example.max() == 1
    chosen = dp.corruption(lambda pixels, generator: pixels > 0.5)
    assert chosen(torch.rand(3, 3, 4, 4), 1).max() == 1


def test_a_failed_load_leaves_the_network_as_it_was(tmp_path):
    path = dp.save(network(), tmp_path / "weights.safetensors")
    other = network(classes=9)
    nn.init.zeros_(other[0].weight)
    with pytest.raises(StaleArtifact, match="another network"):
        dp.load(path, other)
    assert not other[0].weight.any()


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda m, d: dp.finetune(m, d, dark, epochs=0), "epochs=0: give a number above 0"),
        (lambda m, d: dp.train_patch(m, d, dark, {"0": [0]}, lr=-1.0), "lr=-1.0"),
        (lambda m, d: dp.rank_filters(m, d, dark, method="taylor", batch_size=0), "batch_size=0"),
        (lambda m, d: dp.rank_filters(m, d, dark, method="taylor", memory=0), "memory=0"),
        (lambda m, d: dp.evaluate(m, d, batch_size=0), "batch_size=0"),
        (lambda m, d: dp.choose_labels(m, tensors(20)[0], d, budget=3, method="mcp"), "give a uint8 tensor"),
    ],
)
def test_numbers_and_pools_that_make_no_sense_are_refused(call, reason, data):
    with pytest.raises(UserError, match=reason):
        call(dp.Classifier(network()), data)


@pytest.mark.parametrize(
    ("count", "label", "reason"), [(20, 77, "from 77 to 77, classes from 0 to 2"), (3, 0, "a pool of 3")]
)
def test_a_selection_of_other_classes_or_of_another_pool_is_refused(count, label, reason, data):
    pool = (tensors(count)[0] * 255).byte()
    with pytest.raises(UserError, match=reason):
        dp.relearn(dp.Classifier(network()), data, pool, supervised(torch.tensor([9]), torch.tensor([label])))


def test_reading_a_loader_and_training_leave_the_global_random_state(data):
    model = dp.Classifier(network())
    before = torch.get_rng_state()
    dp.Data.of(DataLoader(TensorDataset(*tensors(30)), 7, shuffle=True), tensors(12))
    dp.train_patch(model, data, dark, {"0": [0]}, epochs=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_training_works_where_gradients_are_off(data):
    with torch.no_grad():
        patch = dp.train_patch(dp.Classifier(network()), data, dark, {"0": [0]}, epochs=1)
    assert len(patch.history.loss) == 1


def test_ratios_that_choose_no_filter_of_a_small_network_are_left_out(data):
    model = dp.Classifier(network())
    found = dp.estimate_ratio(
        model,
        data,
        dark,
        train=lambda channels: dp.train_patch(model, data, dark, channels, epochs=1).apply(model),
        ratios=(0.01, 0.5),
    )
    assert found.ratio == 0.5
