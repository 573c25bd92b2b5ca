"""A floor under a repair: of networks between its start and its result, take the one that does best on val."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deeppatch import runtime
from deeppatch.data import views
from deeppatch.data.images import Images
from deeppatch.graph.statistics import batch_norms, reestimate
from deeppatch.progress import info
from deeppatch.training import predict

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
# the training images on which statistics are estimated again, and those of a batch
IMAGES, BATCH = 2400, 240


@dataclass(frozen=True)
class Floor:
    """The chosen network, its `alpha`, and `scores`: the weighted accuracies in [0, 1] of all of ALPHAS.

    `is_raw` says that it is the network as it was given, which has the weighted accuracy `raw_score`; alpha is 0 then.
    """

    network: nn.Module
    alpha: float
    scores: tuple[float, ...]
    raw_score: float | None = None
    is_raw: bool = False


def between(
    start: nn.Module, end: nn.Module, alpha: float, train: Images, *, seed: int, amp: bool = False
) -> nn.Module:
    """Return a network whose weights are (1 - alpha) times those of `start` plus alpha times those of `end`.

    Its running statistics are estimated again on training images (as in REPAIR, Jordan et al., ICLR 2023). With 0 and
    1 it is `start` and `end`, bit for bit.

    Args:
        start: A network.
        end: A network of the same architecture.
        alpha: The share of `end`, in [0, 1].
        train: The training images, on the device of the networks.
        seed: The seed of the choice of 2,400 of them.
        amp: Whether forward passes run in bfloat16.

    >>> images = Images(torch.zeros(4, 3, 2, 2, dtype=torch.uint8), torch.zeros(4, dtype=torch.long))
    >>> networks = [nn.Sequential(nn.Flatten(), nn.Linear(12, 2)) for _ in range(2)]
    >>> _ = [nn.init.constant_(each[1].weight, value) for value, each in enumerate(networks)]
    >>> between(*networks, 0.25, images, seed=1)[1].weight[0, 0].item()
    0.25
    """
    if alpha in (0, 1):
        return copy.deepcopy(end if alpha else start).eval()
    mixed = copy.deepcopy(end).eval()
    ends = end.state_dict()
    mixed.load_state_dict(
        {
            name: torch.lerp(value, ends[name], alpha) if value.is_floating_point() else ends[name]
            for name, value in start.state_dict().items()
        }
    )
    if not batch_norms(mixed):
        return mixed
    count = min(IMAGES, len(train))
    count -= count % BATCH if count > BATCH else 0
    order = torch.randperm(len(train), generator=runtime.generator(seed, "floor"))[:count].to(train.labels.device)
    return reestimate(mixed, ((views.to_float(train.pixels[part]),) for part in order.split(BATCH)), amp=amp)


def class_weighted_accuracy(predictions: Tensor, labels: Tensor, prior: Tensor) -> float:
    """Return the accuracy on images in which classes would occur as in `prior` (C,), from those where they do not.

    Each image counts by q / p of its class, where p is its share of the labels (N,); classes without an image are left
    out.

    >>> class_weighted_accuracy(torch.tensor([0, 0, 0, 0]), torch.tensor([0, 0, 0, 1]), torch.tensor([0.5, 0.5]))
    0.5
    """
    counts = labels.bincount(minlength=len(prior)).double()
    weights = torch.where(counts > 0, prior.to(counts) / counts.clamp(min=1), 0)[labels]
    return float((weights * (predictions == labels)).sum() / weights.sum())


def best_between(
    start: nn.Module,
    end: nn.Module,
    train: Images,
    val: Images,
    prior: Tensor,
    *,
    raw: nn.Module | None = None,
    seed: int,
    amp: bool = False,
) -> Floor:
    """Return the network between two that is best on val, weighted to the prior; of equal ones that nearest to start.

    The network as it was given is a candidate, too, and of equal ones it is taken.

    Args:
        start: The network that training began with.
        end: The repaired network.
        train: The training images, for running statistics.
        val: Images that neither was trained on.
        prior: The class prior of the images that the network is for.
        raw: The network as it was given, before the warm start.
        seed: The seed of the choice of training images.
        amp: Whether forward passes run in bfloat16.
    """
    view = views.clean(val, 256)
    networks = [between(start, end, alpha, train, seed=seed, amp=amp) for alpha in ALPHAS]

    def score(network: nn.Module) -> float:
        return class_weighted_accuracy(predict(network, view, amp=amp, label="floor"), view.labels, prior)

    scores = [score(each) for each in networks]
    best = first_best(scores)
    raw_score = None
    if raw is not None:
        given = copy.deepcopy(raw).eval()
        if (raw_score := score(given)) >= scores[best]:
            info("floor: nothing does better on val than the network as it was given, which is kept")
            return Floor(given, 0.0, tuple(scores), raw_score, is_raw=True)
    info(f"floor: {100 * ALPHAS[best]:g} % of the way from the start to the result does best on val")
    return Floor(networks[best], ALPHAS[best], tuple(scores), raw_score)


def first_best(scores: Sequence[float]) -> int:
    """Return the first index of the largest score."""
    return max(range(len(scores)), key=lambda index: (scores[index], -index))
