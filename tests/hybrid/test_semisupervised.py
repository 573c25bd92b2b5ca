"""Both phases of an epoch, what they read and when they choose it; the warm start; a killed repair goes on alike."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch.nn import functional as F

from deeppatch import training
from deeppatch.artifacts import Checkpoint, state_digest
from deeppatch.data import views
from deeppatch.data.sources import Images
from deeppatch.errors import UserError
from deeppatch.hybrid import semisupervised, targets
from deeppatch.hybrid.semisupervised import RepairEpoch, RepairState, repair
from deeppatch.hybrid.training_data import Recipe, RepairSettings, SemiSupervisedData

FEW = Recipe(batch=8, weight=10.0)


def sgd(epochs: int) -> RepairSettings:
    return RepairSettings(epochs, lr=0.02, seed=5)


class Killed(BaseException):
    """Stands in for kill -9: nothing catches it."""


def noisy(pixels: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    """Two views: the image itself, and one with noise."""
    pixels = views.to_float(pixels)
    return torch.stack([pixels, (pixels + 0.2 * torch.randn(pixels.shape, generator=draw)).clamp(0, 1)], 1)


def entropies(model, epochs: int) -> torch.Tensor:
    """Stand in for the mean over views: the entropy on a copy of the pool that is noisy in another way each time."""
    draw = torch.Generator().manual_seed(100 + epochs)
    model.eval()
    with torch.no_grad():
        predictions = model(noisy(POOL, draw)[:, 1]).softmax(1)
    return torch.special.entr(predictions).sum(1) / torch.tensor(5.0).log()


POOL = torch.randint(0, 256, (40, 3, 12, 12), generator=torch.Generator().manual_seed(8), dtype=torch.uint8)


@pytest.fixture
def data(images) -> SemiSupervisedData:
    """Sixty training images; a pool of forty, of which three labels are known and thirty may be drawn."""
    known = torch.full((40,), -1)
    known[torch.tensor([2, 11, 35])] = torch.tensor([1, 4, 0])
    weights = torch.where(torch.arange(40) < 30, 0.5, 0.0)
    weights[known >= 0] = 1
    return SemiSupervisedData(
        images, POOL, known, weights, 5, noisy, consistency_entropy=entropies, crop=True, mirror=True
    )


@pytest.fixture
def knowing(tiny, images) -> torch.nn.Module:
    """A network that is right on about half of the training images."""
    optimizer, schedule = training.constant_sgd(tiny.parameters(), lr=0.05, momentum=0.9, weight_decay=0)
    batch = views.to_float(images.pixels), images.labels
    tiny.train()
    for _ in range(40):
        training.train_epoch(tiny, [batch], training.cross_entropy, optimizer, schedule)
    right = (training.predict(tiny, views.clean(images, 60)) == images.labels).sum()
    assert 20 <= right < 60, "the tests below need both kinds"
    return tiny


def batches(model, data: SemiSupervisedData, recipe: Recipe = FEW, epoch: int = 0) -> tuple[list, list]:
    """Return the batches of both phases of an epoch of a model that nobody trains."""
    model.train()
    every = list(RepairEpoch(RepairState(model, data, recipe, 5), epoch))
    return [b for b in every if not b[2][1].any()], [b for b in every if b[2][1].any()]


def test_the_first_phase_is_the_replayed_and_the_labelled_images_and_no_other(knowing, data, images):
    plain = dataclasses.replace(data, crop=False)
    right = training.predict(knowing, views.clean(images, 60)) == images.labels
    first, _ = batches(knowing, plain, dataclasses.replace(FEW, batch=int(right.sum()) + 3))
    ((pixels, taught, weights),) = first
    want = torch.cat([views.to_float(images.pixels[right]), views.to_float(data.pool[[2, 11, 35]])])
    labels = torch.cat([images.labels[right], torch.tensor([1, 4, 0])])
    match = (pixels.unsqueeze(1) == want).flatten(2).all(2)
    assert match.sum(1).tolist() == [1] * len(want)
    assert match.sum(0).tolist() == [1] * len(want)
    assert torch.equal(taught, targets.smooth_labels(labels[match.int().argmax(1)], 5, 0.1))
    assert torch.allclose(weights[0], torch.tensor(1 / len(want)))
    assert not weights[1].any()


def test_newly_labelled_images_are_augmented_as_training_images_are(knowing, data):
    first, _ = batches(knowing, data)
    plain, _ = batches(knowing, dataclasses.replace(data, crop=False))
    mine = torch.cat([pixels for pixels, *_ in first]), torch.cat([pixels for pixels, *_ in plain])
    bought = (mine[1].unsqueeze(1) == views.to_float(data.pool[[2, 11, 35]])).flatten(2).all(2).any(1)
    moved = (mine[0] != mine[1]).flatten(1).any(1)
    assert 1 <= bought.sum() <= 3
    assert moved[bought].any()
    assert moved[~bought].any()


def test_the_numbers_of_batches_are_those_of_the_definition(knowing, data, images):
    right = int((training.predict(knowing, views.clean(images, 60)) == images.labels).sum())
    epoch = RepairEpoch(RepairState(knowing, data, FEW, 5), 0)
    first, second = batches(knowing, data)
    assert (len(first), len(second)) == ((right + 3) // 8, max(right, 40) // 8)
    assert len(epoch) == len(first) + len(second)
    unweighted = dataclasses.replace(data, consistency_entropy=None)
    assert len(batches(knowing, unweighted)[1]) == max(right, 31) // 8
    fixed = dataclasses.replace(unweighted, weighted=True)
    assert len(batches(knowing, fixed)[1]) == len(second), "as many where weights stay"
    state = RepairState(knowing, fixed, FEW, 5)
    assert torch.equal(state.weights(3), data.weights)
    assert not torch.equal(RepairState(knowing, data, FEW, 5).weights(3), data.weights)
    capped = batches(knowing, data, dataclasses.replace(FEW, steps=2))
    assert [len(phase) for phase in capped] == [2, 2]


def test_the_second_phase_mixes_replayed_labels_with_pseudo_labels_on_every_view(knowing, data, monkeypatch):
    """Undo the mixing and look at the parts: eight labelled rows, then each drawn image in two views."""
    mixed = []
    monkeypatch.setattr(semisupervised, "mix_rows", lambda values, *_: mixed.append(values) or values)
    _, second = batches(knowing, dataclasses.replace(data, crop=False))
    knowing.eval()
    certain, guessed = 0, 0
    for pixels, taught, weights in second:
        assert len(pixels) == 8 + 8 * 2
        assert torch.allclose(taught.sum(1), torch.ones(24), atol=1e-5)
        assert (taught[:8].max(1).values == 1).all(), "one-hot"
        assert torch.allclose(weights[0], torch.tensor([1 / 8] * 8 + [0.0] * 16))
        assert torch.allclose(weights[1], torch.tensor([0.0] * 8 + [10 / 16] * 16))
        assert torch.equal(taught[8::2], taught[9::2]), "all views of an image are taught the same"
        for image, target in zip(pixels[8::2], taught[8::2], strict=True):
            (place,) = (views.to_float(data.pool) == image).flatten(1).all(1).nonzero()[:, 0]
            assert data.weights[place] > 0
            if data.known[place] >= 0:
                certain += 1
                assert torch.equal(target, targets.smooth_labels(data.known[place].view(1), 5, 0.1)[0])
            else:
                guessed += 1
                assert not torch.equal(target, targets.smooth_labels(target.argmax().view(1), 5, 0.1)[0])
    assert certain > 3
    assert guessed > 3
    assert len(mixed) == 2 * len(second), "pixels and targets alike"


def test_labels_are_mixed_with_the_partners_and_shares_of_their_images(knowing, data, monkeypatch):
    seen = []
    monkeypatch.setattr(semisupervised, "mix_rows", lambda *given: seen.append(given) or targets.mix_rows(*given))
    _, second = batches(knowing, data)
    for (pixels, *how), (labels, *same), (shown, taught, _) in zip(seen[::2], seen[1::2], second, strict=True):
        partners, share = how
        assert all(map(torch.equal, how, same))
        assert partners.sort().values.tolist() == list(range(24))
        assert 0.5 <= share < 1
        torch.testing.assert_close(shown, share * pixels + (1 - share) * pixels[partners])
        torch.testing.assert_close(taught, share * labels + (1 - share) * labels[partners])
        assert (labels[:8].max(1).values == 1).all(), "one-hot before, mixed after"
        assert (taught[:8].max(1).values < 1).any()
    assert len({share.item() for _, _, share in seen}) == len(second), "drawn anew for every batch"


def test_pseudo_labels_are_of_the_model_as_it_is_at_that_step_in_train_mode(knowing, data, monkeypatch):
    seen = []

    def note(model, sights, temperature):
        seen.append((model.training, state_digest(dict(model.named_parameters()))))
        return targets.pseudo_labels(model, sights, temperature)

    monkeypatch.setattr(semisupervised, "pseudo_labels", note)
    repair(knowing, data, FEW, sgd(1), lambda _m: 0.0)
    assert all(mode for mode, _digest in seen)
    assert len({digest for _mode, digest in seen}) == len(seen)


def test_every_epoch_and_every_phase_draws_anew_and_the_seed_repeats_it(knowing, data):
    start = copy.deepcopy(knowing)
    one, again, other = (batches(copy.deepcopy(start), data, epoch=epoch) for epoch in (0, 0, 1))
    for first, second in zip([*one[0], *one[1]], [*again[0], *again[1]], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(one[0][0][0], other[0][0][0])
    assert not torch.equal(one[1][0][0], other[1][0][0])


def test_the_replayed_are_chosen_anew_for_the_second_phase_and_each_epoch(knowing, data, monkeypatch):
    chosen = []
    replayed = RepairState.replayed

    def note(self):
        chosen.append((state_digest(dict(self.model.named_parameters())), replayed(self)))
        return chosen[-1][1]

    monkeypatch.setattr(RepairState, "replayed", note)
    repair(knowing, data, FEW, sgd(2), lambda _m: 0.0)
    assert len(chosen) == 4
    assert len({digest for digest, _ in chosen}) == 4


def test_the_replayed_are_judged_as_they_are_though_training_crops_and_mirrors_them(knowing, data, images):
    assert data.crop
    assert data.mirror
    right = training.predict(knowing, views.clean(images, 60)) == images.labels
    replayed = [RepairState(knowing, each, FEW, 5).replayed() for each in (data, data.training_images_only())]
    assert all(torch.equal(places, right.nonzero()[:, 0]) for places in replayed)
    ((moved, labels),) = data.labelled(images, 60, 1, torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (knowing.eval()(moved).argmax(1) == labels).sum() != right.sum(), "moved, they are judged otherwise"


def test_labels_only_have_no_second_phase_and_pseudo_labels_only_no_first(knowing, data):
    labels = dataclasses.replace(data, weights=torch.zeros(40))
    first, second = batches(knowing, labels)
    assert first
    assert not second
    alone = dataclasses.replace(data, supervised=False, known=torch.full((40,), -1))
    first, second = batches(knowing, alone)
    assert not first
    assert second


def test_nothing_below_the_cut_leaves_the_known_images_to_the_second_phase(knowing, data):
    weights = torch.where(data.known >= 0, 1.0, 0.0)
    _, second = batches(knowing, dataclasses.replace(data, weights=weights))
    assert len(second) == 5


def test_lambda_is_whole_from_the_first_step_or_grows_over_the_first_epochs(knowing, data):
    def strengths(recipe: Recipe, epoch: int) -> list[float]:
        return [16 * weights[1, -1].item() for _p, _t, weights in batches(knowing, data, recipe, epoch)[1]]

    assert strengths(FEW, 0) == pytest.approx([10.0] * 5)
    growing = dataclasses.replace(FEW, ramp=2)
    model_free = list(RepairEpoch(RepairState(knowing.train(), data, growing, 5), 0))[-5:]
    assert [16 * w[1, -1].item() for *_, w in model_free] == pytest.approx([0.0, 1.0, 2.0, 3.0, 4.0])
    assert strengths(growing, 2) == pytest.approx([10.0] * 5)


def test_the_weights_follow_the_model_after_the_first_epoch(knowing, data):
    state = RepairState(knowing, data, FEW, 5)
    assert torch.equal(state.weights(0), data.weights)
    assert torch.equal(state.weights(1), data.updated_weights(entropies(knowing, 1)))
    fixed = RepairState(knowing, dataclasses.replace(data, consistency_entropy=None), FEW, 5)
    assert torch.equal(fixed.weights(1), data.weights)


def test_the_entropy_is_measured_once_after_each_epoch(knowing, data):
    measured = []

    def counted(model, epochs):
        measured.append(epochs)
        return entropies(model, epochs)

    history = repair(
        knowing, dataclasses.replace(data, consistency_entropy=counted), FEW, sgd(3), lambda _m: 0.5,
        watch=lambda _m: {"other": 1.0},
    )  # fmt: skip
    assert measured == [1, 2, 3]
    assert [list(entry) for entry in history.watched] == [["other", "entropy"]] * 3
    assert history.watched[2]["entropy"] == pytest.approx(entropies(knowing, 3).mean().item())


def test_the_warm_start_is_plain_cross_entropy_on_what_is_replayed(knowing, data, images):
    """The oracle: the same batches by hand, cross entropy on hard labels, and torch's SGD at a constant rate."""
    nothing = data.training_images_only()
    plain = dataclasses.replace(FEW, smoothing=0.0)
    ours, theirs = copy.deepcopy(knowing), copy.deepcopy(knowing)
    repair(ours, nothing, plain, sgd(2), lambda _m: 0.0)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    for epoch in range(2):
        right = training.predict(theirs, views.clean(images, 60)) == images.labels
        theirs.train()
        state = RepairState(theirs, nothing, plain, 5)
        for pixels, taught, _weights in list(RepairEpoch(state, epoch)):
            assert int(right.sum()) >= 8
            optimizer.zero_grad()
            F.cross_entropy(theirs(pixels), taught.argmax(1)).backward()
            optimizer.step()
    for key, value in theirs.state_dict().items():
        assert torch.allclose(ours.state_dict()[key], value, atol=1e-5), key


def test_the_last_epoch_stays_whatever_was_measured(knowing, data):
    states = []

    def validate(model):
        states.append(state_digest(model.state_dict()))
        return (0.9, 0.1, 0.2)[len(states) - 1]

    repair(knowing, data, FEW, sgd(3), validate)
    assert len(set(states)) == 3
    assert state_digest(knowing.state_dict()) == states[-1]


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("killed", [1, 2, 3])
def test_a_repair_killed_in_any_epoch_goes_on_to_the_same_bytes(knowing, data, tmp_path, killed, weighted):
    if not weighted:
        data = dataclasses.replace(data, consistency_entropy=None)

    def run(*, die_at: int | None = None, saved: Checkpoint | None = None):
        model, calls = copy.deepcopy(knowing), []

        def watch(trained):
            calls.append(1)
            if len(calls) == die_at:
                raise Killed
            return {"sum": sum(p.sum().item() for p in trained.parameters())}

        history = repair(model, data, FEW, sgd(3), lambda _m: 0.5, watch=watch, checkpoint=saved)
        return state_digest(model.state_dict()), history, len(calls)

    def saved() -> Checkpoint:
        return Checkpoint(tmp_path / "checkpoint.pt", {}, resume=True)

    digest, history, _ = run()
    with pytest.raises(Killed):
        run(die_at=killed, saved=saved())
    torch.rand(7)  # a run that resumes starts from other random states
    resumed, again, calls = run(saved=saved())
    assert (resumed, again) == (digest, history)
    assert calls == 3 - killed + 1


def test_a_network_that_knows_nothing_is_refused(tiny, images, data):
    wrong = Images(images.pixels, (training.predict(tiny, views.clean(images, 60)) + 1) % 5)
    with pytest.raises(UserError, match="classifies no training image correctly: train it longer first"):
        repair(tiny, dataclasses.replace(data, train=wrong), FEW, sgd(1), lambda _m: 0.0)


def test_looking_leaves_the_mode_of_the_model(knowing, data):
    for training_mode in (True, False):
        knowing.train(training_mode)
        state = RepairState(knowing, data, FEW, 5)
        state.replayed()
        state.consistency_entropy(1)
        assert knowing.training is training_mode
