"""Labels bought in rounds: nothing twice, what is bought counts as known, repairs between the rounds only choose."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deeppatch.data.dataset import Data
from deeppatch.errors import UserError
from deeppatch.hybrid.choosing import choose, choose_labels
from deeppatch.hybrid.diversity import k_centers
from deeppatch.hybrid.names import METHODS
from deeppatch.hybrid.rounds import choose_further, combined, in_rounds, round_budgets
from deeppatch.hybrid.selection import Selection, supervised
from deeppatch.hybrid.selection_inputs import SelectionInputs

TRUTH = torch.arange(50) % 5


@pytest.fixture
def inputs(tiny, images) -> SelectionInputs:
    pool = torch.randint(0, 256, (50, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(7))
    return SelectionInputs(tiny, pool, images.pixels, seed=1, views=1, train_labels=images.labels)


@pytest.mark.parametrize("method", METHODS)
def test_a_further_round_buys_other_images_with_their_own_labels(inputs, method):
    first = choose(inputs, 4, method=method, oracle=TRUTH).selection
    found = choose_further(inputs, first, 6, method=method, oracle=TRUTH)
    bought = 0 if method == "none" else 10
    assert len(found.bought) == len(found.bought.unique()) == bought
    assert found.bought[: len(first.bought)].tolist() == first.bought.tolist()
    assert torch.equal(found.labels, TRUTH[found.bought])
    assert len(found.members) == len(found.members.unique()) == len(found.lender)
    own = {int(image): int(label) for image, label in zip(found.members, found.member_labels, strict=True)}
    assert all(own[image] == TRUTH[image] for image in found.bought.tolist()), "no propagated label in its place"
    assert len(found.unlabelled) == len(found.unlabelled.unique()) == len(found.weights)
    assert found.facts["rounds"] == 2
    if method in ("ssl-random", "ssl-consistency"):
        assert sorted([*found.unlabelled.tolist(), *found.bought.tolist()]) == list(range(50))
    if method == "ssl-consistency-imp":
        assert sorted(found.unlabelled.tolist()) == list(range(50)), "what is bought stays in the stream"


def test_what_is_bought_covers_the_pool_as_training_images_do(inputs):
    first = supervised(torch.tensor([3, 30]), TRUTH[[3, 30]])
    found = choose_further(inputs, first, 5, method="coreset", oracle=TRUTH)
    covered = torch.cat([inputs.train_features, inputs.features[first.bought]])
    assert found.bought[2:].tolist() == k_centers(inputs.features, covered, 5).tolist()


def test_a_function_is_asked_for_images_of_the_whole_pool(inputs):
    asked: list[Tensor] = []

    def answer(index: Tensor) -> Tensor:
        asked.append(index)
        return TRUTH[index]

    first = supervised(torch.tensor([0, 1, 2]), TRUTH[:3])
    found = choose_further(inputs, first, 4, method="mcp", oracle=answer)
    assert torch.equal(asked[0], found.bought[3:])
    assert torch.equal(found.labels, TRUTH[found.bought])
    unknown = choose_further(inputs, first, 4, method="mcp")
    assert unknown.labels.tolist() == [*TRUTH[:3].tolist(), -1, -1, -1, -1]
    with pytest.raises(UserError, match="labels of the earlier selection are missing"):
        choose_further(inputs, unknown, 4, method="mcp")
    with pytest.raises(UserError, match="48 further labels; 47 images of the pool are left"):
        choose_further(inputs, first, 48, method="mcp")


def test_of_two_propagated_labels_the_later_counts():
    nothing = torch.empty(0, dtype=torch.long)
    weights = torch.empty(0)
    first = Selection(torch.tensor([1]), torch.tensor([0]), torch.tensor([1, 4, 5]), torch.tensor([0, 0, 0]),
                      nothing, weights)  # fmt: skip
    later = Selection(torch.tensor([5, 8]), torch.tensor([2, 3]), torch.tensor([5, 8, 4]), torch.tensor([0, 1, 1]),
                      nothing, weights, {"tau": 0.5})  # fmt: skip
    found = combined(first, later)
    assert dict(zip(found.members.tolist(), found.member_labels.tolist(), strict=True)) == {1: 0, 5: 2, 8: 3, 4: 3}
    assert found.facts == {"tau": 0.5, "rounds": 2}


def test_every_round_is_chosen_by_the_network_that_the_labels_so_far_have_repaired():
    seen: list[object] = []

    def repair(selection: Selection, number: int) -> str:
        seen.append((number, selection.bought.tolist()))
        return f"network {number}"

    def choose_next(network: str, selection: Selection, budget: int) -> Selection:
        seen.append((network, budget))
        start = len(selection.bought)
        return supervised(torch.arange(start + budget), torch.zeros(start + budget))

    found = in_rounds(supervised(torch.arange(2), torch.zeros(2)), [2, 2, 1], repair, choose_next)
    assert seen == [(1, [0, 1]), ("network 1", 2), (2, [0, 1, 2, 3]), ("network 2", 1)]
    assert len(found.bought) == 5


def test_budgets_add_up():
    for given in ({"rounds": 4}, {"step": 3}, {"rounds": 11}, {"step": 20}, {}):
        parts = round_budgets(11, **given)
        assert sum(parts) == 11
        assert len(parts) == given.get("rounds", -(-11 // given.get("step", 11)))
    with pytest.raises(UserError, match="12 rounds for 11 labels"):
        round_budgets(11, 12)


def test_rounds_in_python(inputs, images):
    data = Data(images, images, images, tuple("abcde"))
    first = choose_labels(inputs.model, inputs.pool, data, 3, method="random", oracle=TRUTH)
    found = choose_labels(inputs.model, inputs.pool, data, 3, method="random", oracle=TRUTH, earlier=first)
    assert len(found.bought.unique()) == 6
    with pytest.raises(UserError, match="method 'best' is unknown"):
        choose_labels(inputs.model, inputs.pool, data, 3, method="best", earlier=first)
