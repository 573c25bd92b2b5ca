from __future__ import annotations

import dataclasses

import pytest
import torch

from deeppatch.data import views
from deeppatch.hybrid.selection import Selection
from deeppatch.hybrid.training_data import Recipe, SemiSupervisedData, draw_batches, known_and_weights, shuffled_batches


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def data(images) -> SemiSupervisedData:
    """Twenty pool images: labels known of 3 and 5, never drawn the last five."""
    known = torch.full((20,), -1)
    known[torch.tensor([3, 5])] = torch.tensor([1, 4])
    weights = torch.cat([torch.linspace(0.1, 0.9, 15), torch.zeros(5)])
    return SemiSupervisedData(images, images.pixels[:20], known, weights, 5, lambda pixels, _draw: pixels.unsqueeze(1))


def test_passes_go_through_everything_before_they_come_back():
    order = shuffled_batches(10, 3, 7, draw())
    assert order.shape == (7, 3)
    for start in (0, 3):
        assert len(set(order[start : start + 3].flatten().tolist())) == 9
    assert set(order.flatten().tolist()) == set(range(10)), "what a pass leaves out changes"
    assert not torch.equal(order[:3], order[3:6])


def test_fewer_images_than_a_batch_are_a_small_batch():
    order = shuffled_batches(5, 64, 3, draw())
    assert [sorted(row) for row in order.tolist()] == [[0, 1, 2, 3, 4]] * 3


@pytest.mark.parametrize("replacement", [True, False])
def test_an_image_of_weight_zero_is_never_drawn(replacement):
    weights = torch.rand(200, generator=draw()) * (torch.rand(200, generator=draw(1)) < 0.3)
    weights[17] = 1e-30
    chosen = draw_batches(weights, 64, 50, draw(2), replacement=replacement)
    assert (weights[chosen] > 0).all()


def test_images_are_drawn_as_often_as_their_weight_says():
    weights = torch.tensor([0.0, 1.0, 3.0, 0.0, 4.0])
    chosen = draw_batches(weights, 100, 400, draw(), replacement=True).flatten()
    shares = torch.bincount(chosen, minlength=5) / len(chosen)
    assert torch.allclose(shares, weights / 8, atol=0.01)


def test_without_weights_they_come_in_shuffled_passes():
    weights = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0, 1.0])
    chosen = draw_batches(weights, 2, 4, draw(), replacement=False)
    assert sorted(chosen[:2].flatten().tolist()) == sorted(chosen[2:].flatten().tolist()) == [1, 2, 4, 5]


def test_refreshed_weights_follow_the_entropy_where_there_was_a_weight_and_no_label(data):
    entropy = torch.linspace(0, 1, 20)
    found = data.updated_weights(entropy)
    for i in range(20):
        want = 0 if i >= 15 else 1 if i in (3, 5) else 1 - entropy[i].item()
        assert found[i].item() == pytest.approx(want)
    assert data.updated_weights(entropy + 1e-3).min() == 0, "rounding leaves no negative weight"


def test_an_epoch_counts_the_whole_pool_where_weights_choose_and_else_what_may_be_drawn(data):
    assert data.drawn_from == 15
    weighted = dataclasses.replace(data, consistency_entropy=lambda _model, _epochs: torch.zeros(20))
    assert weighted.drawn_from == 20


def test_labelled_images_are_cropped_and_mirrored_as_the_data_set_allows(data, images):
    whole = views.to_float(images.pixels)
    (pixels, labels), = data.labelled(images, 60, 1, draw())  # fmt: skip
    order = shuffled_batches(60, 60, 1, draw())[0]
    assert torch.equal(pixels, whole[order])
    assert torch.equal(labels, images.labels[order])
    (cropped, _), = dataclasses.replace(data, crop=True).labelled(images, 60, 1, draw())  # fmt: skip
    (mirrored, _), = dataclasses.replace(data, crop=True, mirror=True).labelled(images, 60, 1, draw())  # fmt: skip
    assert not torch.equal(cropped, pixels)
    same, turned = ((mirrored == other).flatten(1).all(1) for other in (cropped, cropped.flip(3)))
    assert 10 < same.sum() < 50
    assert (same | turned).all()


@pytest.fixture
def selection() -> Selection:
    """Of ten pool images: 2 and 7 bought, 3 and 9 take the label of 7; 2 and 4 pass the cut."""
    return Selection(
        bought=torch.tensor([7, 2]), labels=torch.tensor([4, 1]), members=torch.tensor([2, 3, 7, 9]),
        lender=torch.tensor([1, 0, 0, 0]), unlabelled=torch.tensor([2, 4]), weights=torch.tensor([0.25, 0.5]),
        facts={"weighted": True},
    )  # fmt: skip


def test_with_both_the_members_keep_their_labels_and_are_drawn_whatever_the_cut_says(selection):
    known, weights = known_and_weights(selection, 10, "both")
    assert known.tolist() == [-1, -1, 1, 4, -1, -1, -1, 4, -1, 4]
    assert weights.tolist() == [0, 0, 1, 1, 0.5, 0, 0, 1, 0, 1]


def test_without_weighting_nothing_joins_what_the_selection_reads(selection):
    plain = dataclasses.replace(selection, facts={"weighted": False})
    known, weights = known_and_weights(plain, 10, "both")
    assert known.tolist() == [-1, -1, 1, 4, -1, -1, -1, 4, -1, 4]
    assert weights.tolist() == [0, 0, 0.25, 0, 0.5, 0, 0, 0, 0, 0]


def test_labels_alone_and_guesses_alone(selection):
    known, weights = known_and_weights(selection, 10, "labels")
    assert known.tolist() == [-1, -1, 1, 4, -1, -1, -1, 4, -1, 4]
    assert not weights.any()
    known, weights = known_and_weights(selection, 10, "unlabelled")
    assert (known == -1).all()
    assert weights.tolist() == [0, 0, 0.25, 0, 0.5, 0, 0, 0, 0, 0]


def test_a_label_that_nobody_has_given_yet_counts_for_none(selection):
    partly = dataclasses.replace(selection, labels=torch.tensor([-1, 1]))
    known, weights = known_and_weights(partly, 10, "both")
    assert known.tolist() == [-1, -1, 1, -1, -1, -1, -1, -1, -1, -1]
    assert weights.tolist() == [0, 0, 1, 0, 0.5, 0, 0, 0, 0, 0]


def test_a_phase_has_at_least_one_batch_and_at_most_the_cap():
    assert [Recipe().capped(n) for n in (0, 1, 9)] == [1, 1, 9]
    assert [Recipe(steps=4).capped(n) for n in (0, 1, 9)] == [1, 1, 4]


def test_equal_weights_are_equal_whatever_the_certainty(selection):
    _known, weights = known_and_weights(selection, 10, "both", "equal")
    assert weights.tolist() == [0, 0, 1, 1, 1, 0, 0, 1, 0, 1]
