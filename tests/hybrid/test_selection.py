from __future__ import annotations

import dataclasses

import pytest
import torch

from deeppatch.errors import StaleArtifact
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
