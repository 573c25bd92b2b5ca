"""What the methods of other papers share: with what is special switched off they are fine-tuning, and all resume."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from deeppatch.artifacts import Checkpoint, state_digest
from deeppatch.cli.correct.runners import PEERS
from deeppatch.data.corruptions import Spatial
from deeppatch.data.epochs import clean_epochs
from deeppatch.data.images import Images
from deeppatch.data.pairs import fixed_draw
from deeppatch.data.views import Shuffled
from deeppatch.errors import UserError
from deeppatch.retrain import names
from deeppatch.retrain.apricot import apricot
from deeppatch.retrain.augmix import augmix
from deeppatch.retrain.finetune import finetune, fit_all
from deeppatch.retrain.gini import gini
from deeppatch.retrain.robot import robot
from deeppatch.retrain.sensei import sensei
from deeppatch.training import SGDSettings, accuracy_over_levels, seeded

TRAINING = {"lr": 0.2, "batch_size": 20, "seed": 7}
SMALL = {"rdlm": 2, "rdlm_images": 30, "rdlm_epoch": 2}
# each with something special; steps of apricot stay whatever val says, so that it trains
LIVELY = {
    "sensei": sensei,
    "sensei, sampled": partial(sensei, popsize=3),
    "sensei, spatial": partial(sensei, popsize=5, robust_threshold=1.6),
    "apricot": partial(apricot, **SMALL, fix_steps=6, eta=0.2, unconditional=True),
    "apricot, by val": partial(apricot, **SMALL, fix_steps=12, eta=1.0),
    "robot": partial(robot, select_images=10),
    "gini": partial(gini, select_images=10, select_half=True),
    "augmix": augmix,
}


@pytest.fixture
def model(tiny):
    """A tiny network that draws random numbers while it trains."""
    tiny.network.fc = nn.Sequential(nn.Dropout(0.3), tiny.network.fc)
    return tiny.eval()


def corruption_of(name, blur):
    return Spatial() if "spatial" in name else blur


def results(found):
    names = ("history", "passes", "stored_bytes", "facts", "documents")
    tables = {name: table.to_dict() for name, table in getattr(found, "tables", {}).items()}
    return state_digest(found.state_dict()), [getattr(found, name, None) for name in names], repr(tables)


def test_names_are_those_of_the_registry():
    assert tuple(PEERS) == names.PEERS


@pytest.mark.parametrize(
    "off",
    [
        partial(sensei, popsize=1),
        partial(apricot, **SMALL, fix_steps=3, eta=0.0, unconditional=True),
        partial(augmix, augmix_weight=0.0, augmix_blur=True, nesterov=False),
    ],
    ids=["sensei", "apricot", "augmix"],
)
def test_what_is_not_special_is_finetune_bit_for_bit(model, data, blur, content, off):
    """Apricot's reduced models draw, too, and leave no trace in it."""
    tuned = finetune(model, data, blur, epochs=3, **TRAINING)
    found = off(model, data, blur, epochs=3, **TRAINING)
    assert content(found) == content(tuned) != content(model)
    assert found.history == tuned.history


def fitted(model, data, blur, batches):
    """Fine-tuning on other batches."""
    with seeded(TRAINING["seed"]):
        validate = accuracy_over_levels(data.val, blur, batch_size=TRAINING["batch_size"])
        return fit_all(model, batches, validate, settings=SGDSettings(lr=TRAINING["lr"]))


def test_augmix_without_a_weight_is_finetune_on_clean_images(model, data, blur, content):
    for crop in (False, True):
        found = augmix(model, replace(data, crop=crop), blur, augmix_weight=0.0, nesterov=False, epochs=2, **TRAINING)
        batches = clean_epochs(data.train, epochs=2, batch_size=20, seed=7, augment=crop, mirror=False)
        tuned, history = fitted(model, data, blur, batches)
        assert content(found) == content(tuned)
        assert found.history == history


@pytest.mark.parametrize("peer", [gini, robot])
def test_a_selection_of_everything_alone_is_finetune_on_that_draw(model, data, blur, content, peer):
    found = peer(model, data, blur, select_images=60, select_only=True, epochs=2, **TRAINING)
    draw = fixed_draw(data.train, blur, 20, 7)
    pixels = torch.cat([pixels for pixels, _ in draw])
    kept = draw.levels >= (1 if peer is robot else 0)
    images = Images(pixels[kept], data.train.labels[kept])
    tuned, history = fitted(model, data, blur, [Shuffled(images, 20, 7, epoch) for epoch in range(2)])
    assert content(found) == content(tuned) != content(model)
    assert found.history == history


@pytest.mark.parametrize("name", LIVELY)
def test_the_given_model_stays_and_the_same_seed_gives_the_same_bytes(model, data, blur, content, name):
    before, state = content(model), torch.get_rng_state()
    run = partial(LIVELY[name], model, data, corruption_of(name, blur), epochs=2, **TRAINING)
    first = run()
    assert content(model) == before
    assert not any(module.training for module in (*model.modules(), *first.modules()))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state), "the caller's random state is restored"
    assert results(run()) == results(first)
    assert results(run(seed=8))[0] != results(first)[0]
    assert len(first.history.loss) == 2


@pytest.mark.parametrize(
    ("name", "saves"), [*((name, 2) for name in LIVELY), ("apricot", 3), ("apricot", 6), ("apricot, by val", 5)]
)
def test_interrupted_and_resumed_gives_the_same_bytes(model, data, blur, monkeypatch, tmp_path: Path, name, saves):
    run = partial(LIVELY[name], model, data, corruption_of(name, blur), epochs=3, **TRAINING)
    whole, path, save, done = results(run()), tmp_path / "checkpoint.pt", Checkpoint.save, []

    def interrupting(checkpoint, state):
        save(checkpoint, state)
        done.append(checkpoint.path.name)
        if len(done) == saves:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", interrupting)
        with pytest.raises(KeyboardInterrupt):
            run(checkpoint=Checkpoint(path, {}, resume=False))
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", lambda self, state: done.append(self.path.name) or save(self, state))
        assert results(run(checkpoint=Checkpoint(path, {}, resume=True))) == whole
    reduced = 2 * SMALL["rdlm_epoch"] if "apricot" in name else 0
    assert len(done) == reduced + len(whole[1][0].loss), "epochs that are done are not trained again"
    assert {each.name for each in tmp_path.iterdir()} == {path.name}


@pytest.mark.parametrize("name", LIVELY)
def test_a_budget_of_passes_is_kept(model, data, blur, name):
    found = LIVELY[name](model, data, corruption_of(name, blur), passes=160, epochs=3, **TRAINING)
    extra = getattr(found, "facts", {}).get("rdlm_passes", 0)
    extra += int((fixed_draw(data.train, blur, 20, 7).levels > 0).sum()) if name == "robot" else 0
    trained = found.passes.train - extra
    if "by val" in name:
        assert trained == 40 * found.facts["accepted_steps"] <= 160
    else:  # in whole batches, for apricot in equal parts of them, for augmix of images with two mixtures each
        assert trained == (3 * 40 if name[0] == "a" else 160)


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (partial(sensei, popsize=0), "popsize=0"),
        (partial(sensei, crossover_prob=1.5), "crossover_prob=1.5"),
        (partial(apricot, strategy=4), "strategy=4"),
        (partial(apricot, rdlm=0), "rdlm=0: give a number above 0"),
        (partial(apricot, rdlm=1, rdlm_epoch=1, passes=30), "passes=30: give a batch for each of 20 epochs"),
        (partial(robot, select="worst"), "select='worst': choose from best, multisection"),
        (partial(gini, select_images=0), "select_images=0: give a number above 0"),
        (partial(gini, select_only=True, select_half=True), "choose one"),
        (partial(augmix, augmix_weight=-1.0), "augmix_weight=-1.0: give 0 or more"),
        (partial(augmix, passes=59), "passes=59: give at least 60, for a batch of images with two mixtures each"),
        (partial(augmix, epochs=0), "epochs=0: give a number above 0"),
    ],
)
def test_what_does_not_fit_is_refused(tiny, data, blur, run, said):
    with pytest.raises(UserError, match=said):
        run(tiny, data, blur, batch_size=20)
