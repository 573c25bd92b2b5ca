"""A training that has become useless ends in one line, whichever method trains."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from deeppatch import training
from deeppatch.artifacts import Checkpoint, state_digest
from deeppatch.data.corruptions import GaussianBlur
from deeppatch.data.dataset import Data
from deeppatch.data.images import Images
from deeppatch.decomposition.features import LastLayer
from deeppatch.decomposition.tune import TuneSettings, tune_head, tune_network
from deeppatch.divergence import LOSS_GROWTH, FirstLoss, Validation, check_accuracy, check_loss
from deeppatch.errors import UserError
from deeppatch.hybrid.choosing import choose_labels
from deeppatch.hybrid.relearning import relearn
from deeppatch.hybrid.training_data import Recipe as RepairRecipe
from deeppatch.modular.gradient_search import GradientSearch
from deeppatch.modular.splitting import split_into_modules
from deeppatch.patching.training import train_patch
from deeppatch.pretraining.classifier import train_classifier
from deeppatch.pretraining.recipes import Recipe
from deeppatch.retrain.finetune import finetune
from deeppatch.retrain.norms import norms
from deeppatch.retrain.surgical import surgical

BLUR = GaussianBlur((1.0, 2.0))
TOO_HIGH = {"lr": 1e10, "epochs": 2, "batch_size": 16}
INDICES = torch.tensor([[0, 1, 2, 3, 4, 5]]).repeat(3, 1) + torch.tensor([[0], [3], [6]])


def images(count: int, seed: int) -> Images:
    """Noise of 14 by 12 pixels in which the class's own channel is brighter."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    pixels = torch.randint(0, 150, (count, 3, 14, 12), generator=generator)
    pixels[torch.arange(count), labels] += 60
    return Images(pixels.to(torch.uint8), labels)


def untrained() -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3, padding=1),
        nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(12, 12, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(12, 3),
    )  # fmt: skip


@pytest.fixture(scope="module")
def data() -> Data:
    return Data(images(48, 1), images(24, 2), images(24, 3), ("red", "green", "blue"), "colours")


@pytest.fixture(scope="module")
def model(data) -> nn.Module:
    """A network that tells the classes apart; nothing changes it."""
    trained, history = train_classifier(untrained(), data, Recipe(lr=0.05, epochs=12, batch_size=16))
    assert history.accuracy[history.best] > 0.9
    return trained


TRAININGS = {
    "pretrain": lambda _model, data: train_classifier(untrained(), data, Recipe(lr=1e10, epochs=2, batch_size=16)),
    "finetune": lambda model, data: finetune(model, data, BLUR, **TOO_HIGH),
    "norms": lambda model, data: norms(model, data, BLUR, **TOO_HIGH),
    "surgical": lambda model, data: surgical(model, data, BLUR, **TOO_HIGH),
    "replace": lambda model, data: train_patch(model, data, BLUR, {"0": [1, 3], "4": [0, 2]}, **TOO_HIGH),
    "crtunit": lambda model, data: train_patch(model, data, BLUR, {"0": [1, 3]}, kind="crtunit", **TOO_HIGH),
    "modularize": lambda model, data: split_into_modules(model, data, method=GradientSearch(epochs=2, lr=1e10)),
    "decompose finetune": lambda model, data: tune_network(model, INDICES, data, TuneSettings(epochs=2, lr=1e10)),
    "decompose head": lambda model, data: tune_head(LastLayer(model, data), INDICES, TuneSettings(epochs=2, lr=1e10)),
}


@pytest.mark.parametrize("method", TRAININGS)
def test_a_learning_rate_that_is_far_too_high_is_one_line(model, data, method):
    before = state_digest(model.state_dict())
    with pytest.raises(UserError, match="start anew with a lower learning rate") as error:
        TRAININGS[method](model, data)
    assert "\n" not in str(error.value)
    assert state_digest(model.state_dict()) == before


def test_relearning_too(model, data):
    pool = images(24, 4)
    selection = choose_labels(model, pool.pixels, data, 4, method="random", views=2, batch_size=16)
    selection = selection.with_labels(pool.labels[selection.bought])
    with pytest.raises(UserError, match="start anew with a lower learning rate"):
        relearn(model, data, pool.pixels, selection, epochs=1, lr=1e10, views=2, recipe=RepairRecipe(batch=8, steps=2))


def test_a_loss_may_grow_and_fall_but_not_a_hundredfold():
    for start, mean in ((2.0, 199.0), (0.001, 99.0), (math.nan, 99.0)):
        check_loss("x", nn.Linear(2, 2), mean, FirstLoss(start))
    for start, mean in ((2.0, 201.0), (0.001, 101.0), (None, 101.0)):
        with pytest.raises(UserError, match=f"^x, epoch 3: the loss is {mean:.0f}, above 100 times that of the start"):
            check_loss("x, epoch 3", nn.Linear(2, 2), mean, FirstLoss(start))
    assert LOSS_GROWTH == 100, "as the message says"


def test_a_fall_to_chance_needs_a_start_that_guesses_would_not_reach():
    labels, network = torch.tensor([0, 0, 1, 1, 2, 2]), nn.Linear(2, 2)
    # few images; not far enough from chance; too little is lost; not at chance, with many images
    for count, before, after in ((1, 4 / 6, 1 / 3), (100, 0.38, 1 / 3), (5, 0.9, 0.5), (100, 1.0, 0.42)):
        check_accuracy("x", Validation(lambda _m: 0.0, labels.repeat(count), before), network, after, {})
    # all is lost, from a weak start, too; what is left may be guesses
    for count, before, after in ((1, 1.0, 1 / 3), (100, 0.42, 1 / 3), (5, 0.9, 0.45)):
        told = f"x: the validation accuracy is {100 * after:.1f} %, which is chance, where it was {100 * before:.1f} % "
        with pytest.raises(UserError, match=told):
            check_accuracy("x", Validation(lambda _m: 0.0, labels.repeat(count), before), network, after, {})


@pytest.mark.parametrize("where", ["weight", "running_mean", "running_var"])
def test_values_of_the_model_that_are_not_finite_are_a_loss_that_is_not(where):
    norm = nn.BatchNorm2d(3)
    check_loss("x", norm, 1.0, FirstLoss(1.0))
    with torch.no_grad():
        getattr(norm, where)[1] = math.inf
    with pytest.raises(UserError, match="the loss is not finite; check the weights"):
        check_loss("x", norm, 1.0, FirstLoss(1.0))


def test_a_buffer_of_one_s_own_may_hold_infinity():
    mask = nn.Linear(2, 2)
    mask.register_buffer("mask", torch.tensor([0.0, -math.inf]))
    check_loss("x", mask, 1.0, FirstLoss(1.0))


def test_the_loss_of_the_first_batch_is_that_before_any_step():
    seen, first = [3.0, 1.0], FirstLoss()
    noted = first.noting(lambda _model, _batch: torch.tensor(seen.pop(0)))
    assert [noted(nn.Identity(), ()).item() for _ in range(2)] == [3.0, 1.0]
    assert first.value == 3.0


TEN = torch.arange(100) % 10


@pytest.mark.parametrize(
    ("before", "after", "useless"),
    [(0.9, 0.10, True), (0.9, 0.19, True), (0.9, 0.2, False), (0.3, 0.1, True), (0.2, 0.1, True), (0.19, 0.1, False),
     (0.9, math.nan, False)],
)  # fmt: skip
def test_a_model_at_chance_is_useless_where_it_was_above(before, after, useless):
    """Ten classes: chance is 10 %, and guesses reach 19 % of a hundred images."""
    model, state = nn.Linear(2, 2), nn.Linear(2, 2).state_dict()
    for validate in (Validation(lambda _model: before, TEN), Validation(lambda _model: pytest.fail(), TEN, before)):
        if useless:
            with pytest.raises(UserError, match=rf"^patch: .* is {100 * after:.1f} %, which is chance, where it"):
                check_accuracy("patch", validate, model, after, state)
        else:
            check_accuracy("patch", validate, model, after, state)
    check_accuracy("patch", lambda _model: before, model, after, state)  # without labels chance is unknown


def test_what_is_measured_for_the_accuracy_before_is_the_state_before():
    model, given = nn.Linear(2, 2), nn.Linear(2, 2)
    seen = []
    validate = Validation(lambda network: seen.append(state_digest(network.state_dict())) or 0.1, TEN)
    check_accuracy("x", validate, model, 0.1, given.state_dict())
    assert seen == [state_digest(given.state_dict())]


def test_the_most_frequent_class_is_chance():
    assert Validation(lambda _model: 0.5, torch.tensor([1, 1, 1, 0])).chance == 0.75


def test_a_resumed_training_ends_as_the_whole_one(tmp_path, tiny, images):
    """The loss of the first batch travels in the checkpoint, and so does the answer at the end."""
    stream = [[(images.pixels.float() / 255, images.labels)]] * 3

    def fit(epochs, scale, resume):
        optimizer, schedule = training.adam(tiny.parameters(), lr=1e-9)
        training.fit(
            tiny, stream[:epochs], lambda _model: 0.5, optimizer=optimizer, schedule=schedule,
            loss=lambda model, batch: scale.pop(0) + 0 * model(batch[0]).sum(),
            checkpoint=Checkpoint(tmp_path / "checkpoint.pt", {}, resume),
        )  # fmt: skip

    fit(2, [50.0, 70.0], resume=False)
    fit(3, [4000.0], resume=True)  # below a hundred times 50
    fit(2, [5.0, 70.0], resume=False)
    with pytest.raises(UserError, match="epoch 3: the loss is 4e"):
        fit(3, [4000.0], resume=True)
