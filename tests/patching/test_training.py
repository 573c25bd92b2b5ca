"""Training a patch: what moves, what stays, which epoch is kept, and resumption."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from deeppatch.artifacts import Checkpoint, state_digest
from deeppatch.data import views
from deeppatch.data.corruptions import GaussianBlur
from deeppatch.data.dataset import Data
from deeppatch.data.images import Images
from deeppatch.errors import UserError
from deeppatch.metrics import accuracy
from deeppatch.patching.patch_file import Patch, apply
from deeppatch.patching.training import fit_patch, train_patch
from deeppatch.patching.units import UNITS
from deeppatch.training import History, SGDSettings, predict

CHANNELS = {"conv2": [1, 3, 6], "conv3": [0, 4, 5, 9]}
SETTINGS = SGDSettings(lr=0.05)
KINDS = list(UNITS)


@pytest.fixture
def run(tiny, images, blur) -> Callable[..., tuple[Patch, History]]:
    """Train a patch of the tiny network on blurred images, from the same seed each time."""
    stream = [views.Shuffled(images, 20, 7, epoch, corruption=blur) for epoch in range(4)]
    val = views.append(images, blur, 128)

    def honest(model: nn.Module) -> float:
        return accuracy(predict(model, val), val.labels)

    def train(kind: str, validate: Callable[[nn.Module], float] = honest, seed: int = 1, **more: object):
        torch.manual_seed(seed)
        example = images.pixels[:2].float() / 255
        given = {"channels": CHANNELS, "epochs": stream, "settings": SETTINGS, **more}
        patch = fit_patch(tiny, given.pop("channels"), kind, given.pop("epochs"), validate, example, **given)
        return patch, patch.history

    return train


def network_of(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(model.get_submodule("network").state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_only_new_parameters_change(tiny, run, kind):
    seen: list[dict[str, Tensor]] = []

    def look(model: nn.Module) -> float:
        seen.append(network_of(model))
        return 0.1 * len(seen)

    run(kind, look)
    base = tiny.network.state_dict()
    assert len(seen) == 4
    kept = {key: key.replace("conv2.", "conv2.original.").replace("conv3.", "conv3.original.") for key in base}
    moved = {"bn2.running_mean", "bn2.running_var", "bn2.num_batches_tracked"}
    for state in seen:
        assert set(kept.values()) <= set(state)
        changed = {key for key, place in kept.items() if not torch.equal(base[key], state[place])}
        assert changed == moved, "of the base's tensors only the patch's own copy of statistics moves"
    new = set(seen[0]) - set(kept.values())
    assert new
    assert all(not torch.equal(seen[0][key], seen[3][key]) for key in new)


@pytest.mark.parametrize("kind", KINDS)
def test_model_is_left_as_it_was(tiny, run, kind):
    for training in (False, True):
        tiny.train(training)
        before = state_digest(tiny.state_dict())
        run(kind)
        assert state_digest(tiny.state_dict()) == before
        assert all(parameter.requires_grad and parameter.grad is None for parameter in tiny.parameters())
        assert all(module.training is training for module in tiny.modules())
        assert {type(module) for module in tiny.network.children()} == {nn.Conv2d, nn.BatchNorm2d, nn.Linear}


@pytest.mark.parametrize("kind", KINDS)
def test_patch_says_what_was_trained_and_on_what(tiny, run, kind):
    patch, history = run(kind)
    assert (patch.kind, patch.base, patch.channels) == (kind, state_digest(tiny.state_dict()), CHANNELS)
    assert len(history.loss) == len(history.accuracy) == 4
    assert {key.split("/")[1] for key in patch.tensors if key.startswith("norms/")} == {"bn2"}


@pytest.mark.parametrize("kind", KINDS)
def test_training_lowers_the_loss(run, kind, images):
    everything = [(images.pixels.float() / 255, images.labels)]
    _, history = run(kind, lambda _: 0.5, epochs=[everything] * 30, channels={"conv1": list(range(8)), **CHANNELS})
    assert history.loss[-1] < history.loss[0] - 1e-3


@pytest.mark.parametrize(
    ("accuracies", "best"), [([0.2, 0.9, 0.5, 0.1], 1), ([0.3, 0.7, 0.7, 0.7], 1), ([0.1, 0.2, 0.3, 0.4], 3)]
)
@pytest.mark.parametrize("kind", KINDS)
def test_patch_is_that_of_the_best_epoch(tiny, run, images, kind, accuracies, best):
    seen: list[dict[str, Tensor]] = []

    def scripted(model: nn.Module) -> float:
        seen.append(network_of(model))
        return accuracies[len(seen) - 1]

    patch, history = run(kind, scripted)
    assert history.best == best
    assert history.accuracy == accuracies
    for key, value in patch.tensors.items():
        group, layer, name = key.split("/")
        assert torch.equal(value, seen[best][f"{layer}.{name}"]), f"{group} {layer} {name}"
    others = [state for epoch, state in enumerate(seen) if epoch != best]
    name = "conv2.rows" if kind == "replace" else "conv2.unit.9.weight"
    assert not any(torch.equal(seen[best][name], state[name]) for state in others)


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_gives_the_same_bytes(run, kind):
    (first, one), (second, two) = run(kind), run(kind)
    assert first.to_bytes() == second.to_bytes()
    assert one == two


def test_correction_units_differ_by_seed(run):
    assert run("crtunit", seed=1)[0].to_bytes() != run("crtunit", seed=2)[0].to_bytes()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("epoch", [0, 1, 3])
def test_interrupted_and_resumed_training_gives_the_same_bytes(run, tmp_path: Path, kind, epoch):
    whole, history = run(kind)
    path, calls = tmp_path / "checkpoint.pt", []

    def interrupted(model: nn.Module) -> float:
        calls.append(1)
        if len(calls) > epoch:
            raise KeyboardInterrupt
        return history.accuracy[len(calls) - 1]

    with pytest.raises(KeyboardInterrupt):
        run(kind, interrupted, checkpoint=Checkpoint(path, {}, resume=False))
    assert path.exists() == (epoch > 0)
    trained: list[int] = []

    def remaining(model: nn.Module) -> float:
        trained.append(1)
        return history.accuracy[epoch + len(trained) - 1]

    resumed, again = run(kind, remaining, checkpoint=Checkpoint(path, {}, resume=True))
    assert resumed.to_bytes() == whole.to_bytes()
    assert again == history
    assert len(trained) == 4 - epoch, "epochs that are done are not trained again"


@pytest.mark.parametrize("kind", KINDS)
def test_patch_applied_to_the_base_answers_as_it_validated(tiny, run, images, blur, kind):
    patch, history = run(kind)
    apply(tiny, patch, images.pixels[:2].float() / 255)
    val = views.append(images, blur, 128)
    assert accuracy(predict(tiny, val), val.labels) == pytest.approx(history.accuracy[history.best], abs=1.5 / 420)


@pytest.fixture
def data(images) -> Data:
    return Data(images, images, images, tuple("abcde"))


@pytest.mark.parametrize("kind", KINDS)
def test_train_patch_is_the_fit_on_the_same_epochs(tiny, run, data, blur, kind):
    fitted, history = run(kind)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    settings = {"kind": kind, "epochs": 4, "lr": 0.05, "batch_size": 20}
    patch = train_patch(tiny, data, blur, CHANNELS, seed=7, **settings)
    assert torch.equal(torch.get_rng_state(), before), "the caller's random state is restored"
    assert patch.to_bytes() == train_patch(tiny, data, blur, CHANNELS, seed=7, **settings).to_bytes()
    torch.manual_seed(1)
    patch = train_patch(tiny, data, blur, CHANNELS, seed=7, reseed=False, **settings)
    assert patch.history == history
    assert all(torch.equal(patch.tensors[key], value) for key, value in fitted.tensors.items())
    assert patch.about["classes"] == list("abcde")
    assert patch.about["image_size"] == [12, 12]
    assert patch.about["mean"] == pytest.approx([0.4, 0.5, 0.6])


@pytest.mark.parametrize("kind", KINDS)
def test_any_module_with_images_that_are_not_square_is_patched(kind):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    before = state_digest(model.state_dict())
    images = Images(torch.randint(0, 256, (23, 3, 10, 14), dtype=torch.uint8), torch.arange(23) % 3)
    data = Data(images, images, images, ("a", "b", "c"))
    blur = GaussianBlur((1.0,))
    patch = train_patch(model, data, blur, {"0": [1, 4], "3": [2]}, kind=kind, epochs=2, lr=0.1, batch_size=9)
    assert all(module.training for module in model.modules())
    patched = patch.apply(model)
    assert state_digest(model.state_dict()) == before
    assert not any(module.training for module in patched.modules())
    view = views.append(images, blur, 23)
    assert accuracy(predict(patched, view), view.labels) == pytest.approx(max(patch.history.accuracy), abs=1.5 / 46)
    assert set(patch.about) == {"classes", "image_size"}


def test_fresh_filters_are_those_of_a_new_convolution(tiny, run):
    """Drawn as nn.Conv2d draws its weights; nothing else differs from the start at the original ones."""
    frozen = {"settings": SGDSettings(lr=1e-30, weight_decay=0.0)}
    started, _history = run("replace", init="fresh", **frozen)
    original, _history = run("replace", **frozen)
    torch.manual_seed(1)
    for name, channels in CHANNELS.items():
        convolution = tiny.network.get_submodule(name)
        kernel = convolution.kernel_size
        new = nn.Conv2d(convolution.in_channels, len(channels), kernel, bias=False).weight
        assert torch.equal(started.tensors[f"units/{name}/rows"], new)
        assert torch.equal(original.tensors[f"units/{name}/rows"], convolution.weight[channels])


def test_there_is_no_third_start(tiny, images, blur):
    data = Data(images, images, images, tuple("abcd"))
    with pytest.raises(UserError, match="choose from original, fresh"):
        train_patch(tiny, data, blur, CHANNELS, init="zero")
