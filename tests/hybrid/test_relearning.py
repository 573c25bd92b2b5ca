"""Choosing labels and learning from them on a network and images of one's own, and what a repair is made of."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch
from torch import nn

from deeppatch.artifacts import Checkpoint, state_digest
from deeppatch.cache import ContentCache
from deeppatch.data.dataset import Data
from deeppatch.data.images import Images
from deeppatch.errors import StaleArtifact, UserError
from deeppatch.hybrid import relearning, semisupervised
from deeppatch.hybrid.choosing import choose, choose_labels
from deeppatch.hybrid.relearning import relearn, repair_from_warm_start, semi_supervised_data, warm_start_facts
from deeppatch.hybrid.selection import supervised
from deeppatch.hybrid.selection_inputs import SelectionInputs
from deeppatch.hybrid.training_data import Recipe, RepairSettings

RECIPE = Recipe(batch=8, steps=2)
PUBLISHED = {"pseudo_labels": "published"}


def stripes(count: int, seed: int) -> Images:
    """Images of 20x14 pixels in three classes, which differ in brightness."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    noise = 40 * torch.randn(count, 3, 20, 14, generator=generator)
    return Images((60.0 + 60 * labels.view(-1, 1, 1, 1) + noise).clamp(0, 255).to(torch.uint8), labels)


class Own(nn.Module):
    """A network that ends in a hidden and a last linear layer, with dropout between them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2))
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(16, 9), nn.ReLU(), nn.Dropout(0.2), nn.Linear(9, 3))

    def forward(self, x):
        return self.head(self.body(x))


@pytest.fixture
def own() -> nn.Module:
    torch.manual_seed(2)
    return Own()


@pytest.fixture
def data() -> Data:
    return Data(stripes(40, 1), stripes(12, 2), stripes(15, 3), ("dark", "grey", "light"))


@pytest.mark.parametrize("method", ["hybrid", "ssl-random", "gini"])
def test_images_of_one_s_own_are_chosen_labelled_and_learnt_from(own, data, method, tmp_path):
    pool, before = stripes(50, 4), state_digest(own.state_dict())
    selection = choose_labels(own.train(), pool.pixels, data, "10%", method=method, views=2, batch_size=16)
    assert len(selection.bought) == 5
    assert selection.labels.tolist() == [-1] * 5
    with pytest.raises(UserError, match="labels of the selection are missing; give them with selection.with_labels"):
        relearn(own, data, pool.pixels, selection, epochs=1, recipe=RECIPE)
    labelled = selection.with_labels(pool.labels[selection.bought])
    cache = ContentCache(tmp_path)
    random_state = torch.get_rng_state()
    repaired = [
        relearn(own, data, pool.pixels, labelled, epochs=2, lr=0.1, views=2, recipe=RECIPE, cache=each)
        for each in (cache, cache, None)
    ]
    assert torch.equal(torch.get_rng_state(), random_state), "the caller's random state is restored"
    assert state_digest(own.state_dict()) == before, "the model stays as it was"
    assert own.training
    assert len({state_digest(each.state_dict()) for each in repaired}) == 1, "found or made, the warm start is the same"
    assert state_digest(repaired[0].state_dict()) != before
    assert not repaired[0].training
    assert len(repaired[0].history.loss) == 2
    assert all(0 <= each["test"] <= 1 for each in repaired[0].history.watched)
    assert repaired[0](pool.pixels.float() / 255).shape == (50, 3)


@pytest.mark.parametrize("method", ["hybrid", "gini", "none"])
def test_a_choice_says_why_each_image_was_chosen(own, data, method):
    pool = stripes(50, 4)
    inputs = SelectionInputs(own.eval(), pool.pixels, data.train.pixels, seed=2021, views=1)
    choice = choose(inputs, "10%", method=method, oracle=pool.labels)
    known = choose_labels(own, pool.pixels, data, "10%", method=method, views=1, oracle=pool.labels)
    assert choice.selection.chosen_from(pool.pixels).to_bytes() == known.to_bytes()
    assert choice.labels_bought == len(choice.reasons) == len(choice.clusters) == (0 if method == "none" else 5)
    assert choice.predictions.shape == (50, 3)
    with pytest.raises(UserError, match="method 'best' is unknown"):
        choose(inputs, 5, method="best")


def test_labels_of_a_tensor_and_of_a_function_are_the_same(own, data):
    pool, asked = stripes(50, 4), []

    def answer(indices: torch.Tensor) -> list[int]:
        asked.append(indices)
        return pool.labels[indices].tolist()

    told = [choose_labels(own, pool.pixels, data, 6, oracle=each, views=1) for each in (pool.labels, answer)]
    assert told[0].to_bytes() == told[1].to_bytes()
    assert torch.equal(told[0].labels, pool.labels[told[0].bought])
    assert len(asked) == 1
    assert torch.equal(asked[0], told[0].bought), "only what is bought is asked for"


def test_pseudo_labels_only_need_no_label_but_unlabelled_images(own, data):
    pool = stripes(50, 4).pixels
    selection = choose_labels(own, pool, data, 4, views=1)
    relearn(own, data, pool, selection, epochs=1, use="unlabelled", views=1, recipe=RECIPE, **PUBLISHED)
    with pytest.raises(UserError, match="the selection has no unlabelled images"):
        relearn(own, data, pool, choose_labels(own, pool, data, 4, method="gini"), use="unlabelled", **PUBLISHED)


@pytest.mark.parametrize(
    ("budget", "method", "said"),
    [
        (0, "hybrid", "budget 0: give at least 1 label"), (51, "gini", "budget 51 is 51 of 50 images"),
        ("1%", "gini", "budget 1% is 0 of 50 images"), ("many", "gini", "give a number of labels"),
        (5, "best", "method 'best' is unknown; choose from none, random"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(own, data, budget, method, said):
    with pytest.raises(UserError) as error:
        choose_labels(own, stripes(50, 4).pixels, data, budget, method=method)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_what_the_studies_vary_changes_the_repair(own, data, tmp_path):
    pool = stripes(50, 4)
    selection = choose_labels(own, pool.pixels, data, 5, views=1, oracle=pool.labels)
    given = [{}, {"pool_weights": "fixed"}, {"pool_weights": "equal"}, {"weight_decay": 0.3},
             {"recipe": Recipe(batch=8, steps=2, weight=1.0)}]  # fmt: skip
    cache = ContentCache(tmp_path)
    found = [relearn(own, data, pool.pixels, selection, epochs=2, lr=0.05, views=1, cache=cache,
                     **{"recipe": RECIPE, **PUBLISHED, **each}) for each in given]  # fmt: skip
    assert len({state_digest(each.state_dict()) for each in found}) == len(given)
    assert len(list(tmp_path.iterdir())) == 2, "the warm start depends on the weight decay only"
    assert ["entropy" in each.history.watched[0] for each in found] == [True, False, False, True, True]
    with pytest.raises(UserError, match="pool_weights='x' is unknown; choose from dynamic, fixed, equal"):
        relearn(own, data, pool.pixels, selection, pool_weights="x")


@pytest.mark.parametrize(
    "given",
    [
        {"pool_weights": "fixed"},
        {"recipe": Recipe(weight=1.0)},
        {"recipe": Recipe(ramp=2)},
        {"scope": "head", **PUBLISHED},
        {"prior": False, **PUBLISHED},
        {"prior": torch.ones(3) / 3, **PUBLISHED},
    ],
)
def test_an_option_of_the_other_recipe_is_refused(own, data, given):
    with pytest.raises(UserError, match="can only be given with pseudo_labels='(published|safe)'"):
        relearn(own, data, stripes(50, 4).pixels, supervised(torch.arange(3), torch.arange(3)), **given)


def test_an_unknown_use_is_refused_with_those_that_there_are(own, data):
    selection = supervised(torch.arange(3), torch.arange(3))
    with pytest.raises(UserError, match="use='anything' is unknown; choose from both, labels, unlabelled"):
        relearn(own, data, stripes(50, 4).pixels, selection, use="anything")


def test_a_repair_returns_its_warm_start_and_its_history_too(own, data, tmp_path):
    pool, selection, cache = stripes(50, 4).pixels, supervised(torch.arange(3), torch.arange(3)), ContentCache(tmp_path)
    settings = RepairSettings(epochs=2, lr=0.01)
    found = repair_from_warm_start(own, data, pool, selection, settings, recipe=RECIPE, cache=cache)
    (kept,) = tmp_path.iterdir()
    assert kept == cache.path(warm_start_facts(own, data.train, RECIPE, settings))
    digests = [state_digest(each.state_dict()) for each in (own, found.start, found.repaired)]
    assert len(set(digests)) == 3
    assert state_digest(safetensors.torch.load_file(kept)) == digests[1]
    assert len(found.history.loss) == 2
    again = relearn(own, data, pool, selection, epochs=2, lr=0.01, recipe=RECIPE, **PUBLISHED)
    assert state_digest(again.state_dict()) == digests[2]
    assert again.history.loss == found.history.loss


def test_both_trainings_go_on_from_their_checkpoints_which_belong_to_one_selection(own, data, tmp_path):
    pool, selection, settings = stripes(50, 4).pixels, supervised(torch.arange(3), torch.arange(3)), RepairSettings(2)

    def repaired(selection, *, resume):
        named = {name: Checkpoint(tmp_path / name, {}, resume) for name in ("start_checkpoint", "checkpoint")}
        return repair_from_warm_start(own, data, pool, selection, settings, recipe=RECIPE, **named)

    first = repaired(selection, resume=False)
    assert {path.name for path in tmp_path.iterdir()} == {"start_checkpoint", "checkpoint"}
    again = repaired(selection, resume=True)
    for before, after in ((first.start, again.start), (first.repaired, again.repaired)):
        assert state_digest(before.state_dict()) == state_digest(after.state_dict())
    with pytest.raises(StaleArtifact, match=r"a run with other settings \(selection\)"):
        repaired(supervised(torch.arange(3), torch.zeros(3, dtype=torch.long)), resume=True)


@pytest.mark.parametrize("labels", [[0, 1], [0, 1, -1], [[0, 1, 2]]])
def test_labels_that_do_not_fit_the_selection_are_refused(labels):
    selection = supervised(torch.arange(3), torch.full((3,), -1))
    with pytest.raises(UserError, match=r"one label(, 0 or more,)? for each of the 3 images"):
        selection.with_labels(torch.tensor(labels))


def test_every_repair_starts_from_the_same_warm_start_which_is_trained_once(own, data, tmp_path, monkeypatch):
    labels, fit = [], semisupervised.fit
    monkeypatch.setattr(semisupervised, "fit", lambda *a, **k: labels.append(k["label"]) or fit(*a, **k))
    pool, cache = stripes(50, 4).pixels, ContentCache(tmp_path)
    selection = supervised(torch.arange(3), torch.arange(3))
    for seed in (1, 1, 2):
        relearn(own, data, pool, selection, epochs=1, recipe=RECIPE, seed=seed, cache=cache, **PUBLISHED)
    assert labels == ["finetune", "relearn", "relearn", "finetune", "relearn"]


def test_each_epoch_measures_the_pool_in_new_views_and_training_moves_what_the_data_allow(data, monkeypatch):
    drawn = []

    def measured(_model, _pixels, count, generator, **_named):
        drawn.append((count, torch.rand(3, generator=generator).tolist()))
        return type("Measured", (), {"entropy": None})

    monkeypatch.setattr(relearning, "consistency", measured)
    selection = supervised(torch.tensor([2]), torch.tensor([1]))
    selection.facts["weighted"] = True
    for crop, mirror in ((True, True), (True, False), (False, False)):
        augmented = Data(data.train, data.val, data.test, data.classes, crop=crop, mirror=mirror)
        found = semi_supervised_data(
            augmented, data.test.pixels[:9], selection, use="both", views=2, settings=RepairSettings(seed=3)
        )
        assert (found.crop, found.mirror) == (crop, mirror)
    for epochs in (1, 2, 3, 1):
        found.consistency_entropy(None, epochs)
    assert len({str(each) for each in drawn}) == 3
    assert drawn[0] == drawn[3], "the same after a restart"
    assert {count for count, _ in drawn} == {2}
