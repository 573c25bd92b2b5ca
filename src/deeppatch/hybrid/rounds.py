"""Buy labels in several rounds: each further round is chosen by the network that the labels so far have repaired."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from deeppatch.errors import UserError
from deeppatch.hybrid.budget import affordable
from deeppatch.hybrid.oracle import Labels, Oracle, check_oracle
from deeppatch.hybrid.selection import UNKNOWN, Selection
from deeppatch.hybrid.selection_inputs import SelectionInputs
from deeppatch.hybrid.selection_methods import chosen_by, known_method


def choose_further(
    inputs: SelectionInputs,
    earlier: Selection,
    budget: int | str,
    *,
    method: str = "hybrid",
    oracle: Labels | None = None,
) -> Selection:
    """Choose further images of a pool, and return them together with those of an earlier selection.

    What is bought already is not chosen again: it counts as training images, with its labels.

    Args:
        inputs: The model, by which images are now chosen, the whole pool and the training images.
        earlier: The earlier selection, with labels.
        budget: The number of further labels, or a share of the pool.
        method: A key of METHODS.
        oracle: The labels of the pool, int64 (N,), or a function from indices (B,) to labels (B,), or None.

    Returns:
        The combined selection: earlier images first. Of an image with several propagated labels the latest counts;
        which images are used without labels, and tau, are those of the latest round.

    Raises:
        UserError: When the method is unknown, a label of the earlier selection is missing, or the rest of the pool is
            smaller than the budget.
    """
    known_method(method)
    check_oracle(oracle, len(inputs.pool))
    if bool((earlier.labels == UNKNOWN).any()):
        raise UserError("labels of the earlier selection are missing; give them with selection.with_labels(labels)")
    free = torch.ones(len(inputs.pool), dtype=torch.bool, device=inputs.pool.device)
    free[earlier.bought] = False
    index = free.nonzero().flatten()
    count = affordable(budget, len(inputs.pool))
    if count > len(index):
        raise UserError(f"budget {budget} is {count} further labels; {len(index)} images of the pool are left")
    labels = inputs.train_labels
    rest = replace(
        inputs,
        pool=inputs.pool[index],
        train=torch.cat([inputs.train, inputs.pool[earlier.bought]]),
        train_labels=None if labels is None else torch.cat([labels, earlier.labels.to(labels)]),
    )
    later = chosen_by(method, rest, Oracle(_of_rest(oracle, index), count), count)
    return combined(earlier, _in_whole_pool(later.selection, index))


def combined(earlier: Selection, later: Selection) -> Selection:
    """Return the selection that two rounds make together; both name images by their indices in the whole pool."""
    kept = ~torch.isin(earlier.members, later.members)
    stays = torch.isin(earlier.unlabelled, earlier.bought)  # what is bought is not in the later one's pool
    return Selection(
        torch.cat([earlier.bought, later.bought]),
        torch.cat([earlier.labels, later.labels]),
        torch.cat([earlier.members[kept], later.members]),
        torch.cat([earlier.lender[kept], later.lender + len(earlier.bought)]),
        torch.cat([earlier.unlabelled[stays], later.unlabelled]),
        torch.cat([earlier.weights[stays], later.weights]),
        {**later.facts, "rounds": earlier.facts.get("rounds", 1) + 1},
    )


def round_budgets(budget: int, rounds: int = 1, step: int | None = None) -> list[int]:
    """Return the number of labels of each round: `step` in each but the last, or `rounds` about equal parts.

    Raises:
        UserError: When there are more rounds than labels.

    >>> round_budgets(10), round_budgets(10, 3), round_budgets(10, step=4)
    ([10], [4, 3, 3], [4, 4, 2])
    """
    if step is not None:
        return [min(step, budget - start) for start in range(0, budget, step)]
    if not 1 <= rounds <= budget:
        raise UserError(f"{rounds} rounds for {budget} labels; give 1 to {budget} rounds, or a larger budget")
    return [budget // rounds + (number < budget % rounds) for number in range(rounds)]


def in_rounds(
    first: Selection,
    budgets: Sequence[int],
    repair: Callable[[Selection, int], nn.Module],
    choose: Callable[[nn.Module, Selection, int], Selection],
) -> Selection:
    """Return the selection after all rounds, with which the network is still to be repaired.

    Each repair starts anew, with all labels so far: networks between the rounds only choose, so that the last one has
    as much training as one without rounds.

    Args:
        first: The selection of the first round, with labels.
        budgets: The number of labels of each round, the first included.
        repair: Returns the network that a selection has repaired; the second argument counts rounds from 1.
        choose: Returns the selection together with as many further labels as the third argument says.
    """
    selection = first
    for number, budget in enumerate(budgets[1:], 1):
        selection = choose(repair(selection, number), selection, budget)
    return selection


def _of_rest(oracle: Labels | None, index: Tensor) -> Labels | None:
    """Return an oracle for the images of a pool that `index` names, by their places in it."""
    if oracle is None:
        return None
    if isinstance(oracle, Tensor):
        return oracle.to(index.device)[index]
    ask = oracle
    return lambda places: ask(index.cpu()[places])


def _in_whole_pool(selection: Selection, index: Tensor) -> Selection:
    """Return a selection of the images that `index` names with their indices in the whole pool."""
    named = {name: index[getattr(selection, name)] for name in ("bought", "members", "unlabelled")}
    return replace(selection, **named)  # type: ignore[arg-type]
