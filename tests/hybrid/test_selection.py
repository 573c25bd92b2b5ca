from __future__ import annotations

import dataclasses

import pytest
import torch

from deeppatch.errors import StaleArtifact, UserError
from deeppatch.hybrid.selection import UNKNOWN, Selection, selection_from_bytes, semi_supervised, supervised

PARTS = ("bought", "labels", "members", "lender", "unlabelled", "weights")


@pytest.fixture
def selection() -> Selection:
    return Selection(
        torch.tensor([4, 9]), torch.tensor([1, 0]), torch.tensor([9, 4, 5, 6]), torch.tensor([1, 0, 0, 1]),
        torch.tensor([1, 2, 5]), torch.tensor([0.5, 0.75, 1.0]), {"weighted": True, "tau": 0.25},
    )  # fmt: skip


def test_members_have_the_labels_of_their_lenders(selection):
    assert selection.member_labels.tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize(("use", "counted"), [("both", (2, 4, 3)), ("labels", (2, 4, 0)), ("unlabelled", (0, 0, 3))])
def test_counts_are_of_what_is_used(selection, use, counted):
    assert tuple(selection.counts(use).values()) == counted


def test_a_label_that_is_unknown_or_bought_twice_is_not_counted(selection):
    unknown = dataclasses.replace(selection, labels=torch.tensor([1, UNKNOWN]))
    assert unknown.counts() == {"labels_bought": 1, "labelled_images": 2, "unlabelled_images": 3}
    twice = dataclasses.replace(selection, bought=torch.tensor([4, 4]))
    assert twice.counts()["labels_bought"] == 1


def test_a_selection_survives_being_written_with_more_facts(selection, tmp_path):
    content = selection.to_bytes(method="hybrid", budget="1%")
    assert content == selection.to_bytes(budget="1%", method="hybrid")
    read = selection_from_bytes(content, tmp_path)
    assert all(torch.equal(getattr(read, part), getattr(selection, part)) for part in PARTS)
    assert read.facts == {"weighted": True, "tau": 0.25, "method": "hybrid", "budget": "1%"}
    assert selection.facts == {"weighted": True, "tau": 0.25}
    with pytest.raises(StaleArtifact):
        selection_from_bytes(content[:-3], tmp_path)


def test_without_sharing_everyone_keeps_their_own(tmp_path):
    bought, labels = torch.tensor([7, 3]), torch.tensor([1, 2])
    alone, beside = supervised(bought, labels), semi_supervised(bought, labels, torch.tensor([0, 1]))
    for found in (alone, beside):
        assert (found.members.tolist(), found.lender.tolist()) == ([7, 3], [0, 1])
        assert selection_from_bytes(found.to_bytes(), tmp_path).facts == {"weighted": False, "tau": None}
    assert len(alone.unlabelled) == len(alone.weights) == 0
    assert beside.weights.tolist() == [1, 1]


def test_what_a_person_passes_over_goes_and_what_would_share_its_label_too():
    bought, members, lender = torch.tensor([7, 2, 9]), torch.tensor([7, 1, 2, 9, 4]), torch.tensor([0, 1, 1, 2, 0])
    unlabelled, weights = torch.tensor([2, 1, 5, 9]), torch.tensor([0.2, 0.1, 0.5, 0.9])
    selection = Selection(bought, torch.full((3,), UNKNOWN), members, lender, unlabelled, weights, {"tau": 0.1})
    answered = selection.with_answers(torch.tensor([4, UNKNOWN, 3]))
    labelled = [
        (member, [4, UNKNOWN, 3][place]) for member, place in zip(members.tolist(), lender.tolist(), strict=True)
        if place != 1
    ]  # fmt: skip
    assert answered.bought.tolist() == [7, 9]
    assert list(zip(answered.members.tolist(), answered.member_labels.tolist(), strict=True)) == labelled
    assert answered.unlabelled.tolist() == [1, 5, 9], "image 1 has no label to share, but may be guessed"
    assert answered.weights.tolist() == pytest.approx([0.1, 0.5, 0.9])
    assert answered.facts == {"tau": 0.1}
    whole = torch.tensor([4, 1, 3])
    for name in ("bought", "labels", "members", "lender", "unlabelled", "weights"):
        assert torch.equal(getattr(selection.with_answers(whole), name), getattr(selection.with_labels(whole), name))
    for wrong in ([4, 1], [4, -2, 3]):
        with pytest.raises(UserError, match="one label"):
            selection.with_answers(torch.tensor(wrong))
