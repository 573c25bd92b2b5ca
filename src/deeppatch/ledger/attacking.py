"""Attack the networks of a ledger with PGD on the same images, routed ones along each of their paths."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
from torch import Tensor, nn

from deeppatch import metrics
from deeppatch.attack import EPSILONS, SCHEDULES, Logits, Robustness, Schedule, attack, attack_success
from deeppatch.data import views
from deeppatch.data.images import Images
from deeppatch.ledger.measuring import depends_on_neighbours
from deeppatch.zoo.classifier import device_of


def attack_networks(
    networks: Mapping[str, nn.Module],
    images: Images,
    *,
    base: str,
    epsilons: Sequence[float] = EPSILONS,
    schedules: Sequence[Schedule] = SCHEDULES,
    batch_size: int = 256,
    seed: int = 2021,
) -> pd.DataFrame:
    """Return how robust networks are against PGD within L-infinity balls, and against the base.

    Args:
        networks: Classifiers of pixels (N, 3, H, W) in [0, 1]. A routed one is attacked along each path, and with its
            decision held; one whose answer depends on the other images of its batch is left out.
        images: The clean images to attack.
        base: The name of the network to compare with.
        epsilons: The radii of the balls, in pixels of [0, 1].
        schedules: The runs of PGD.
        batch_size: The number of images in a batch.
        seed: The seed of the random starts.

    Returns:
        A row for each network and radius, in percent: `accuracy` and `robust_accuracy` over all `images`, with the
        exact 95 % interval of the latter, and the attack success rates (`attack_success`) of the network and of the
        base on the `both_right` images that both classify correctly.

    >>> import torch
    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    >>> images = Images(torch.randint(0, 256, (6, 3, 2, 2), dtype=torch.uint8), torch.arange(6) % 2)
    >>> found = attack_networks({"a": network, "b": network}, images, base="a", epsilons=[0.01])
    >>> found[["network", "images"]].to_numpy().tolist()
    [['a', 6], ['b', 6]]
    """
    rows: list[dict[str, Any]] = []
    for epsilon in epsilons:
        found: dict[str, Robustness] = {}
        for name, network in networks.items():
            if not depends_on_neighbours(network):
                paths, decide = routed_paths(network)
                batches = views.clean(images.to(device_of(network)), batch_size)
                found[name] = attack(
                    network, batches, epsilon=epsilon, paths=paths, decide=decide, schedules=schedules, seed=seed
                )
        rows += [_row(name, each, found[base]) for name, each in found.items()]
    return pd.DataFrame(rows)


def routed_paths(network: nn.Module) -> tuple[dict[str, Logits] | None, Callable[[Tensor], Tensor] | None]:
    """Return the paths of a routed network, from pixels to logits, and its decision between them; None for others."""
    route, answer = (getattr(network, name, None) for name in ("route", "answer"))
    look = getattr(network, "look", getattr(network, "run_stem", None))
    ends = getattr(network, "networks", None) or [getattr(network, name, None) for name in ("original", "patched")]
    if not callable(route) or not callable(look) or not all(map(callable, ends)):
        return None, None
    paths: dict[str, Logits] = {
        str(number): lambda pixels, end=end: end(*look(pixels)[0])  # type: ignore[misc]
        for number, end in enumerate(ends)
    }
    if callable(answer):
        return paths, lambda pixels: answer(pixels).expert
    return paths, lambda pixels: route(pixels)[-1].long()


def _row(name: str, own: Robustness, base: Robustness) -> dict[str, Any]:
    success = attack_success(base, own)
    share = metrics.share_interval(int(own.robust.sum()), len(own.robust)).scaled(100)
    before, after = success.percent
    return {
        "network": name, "epsilon": own.epsilon, "images": len(own.robust),
        "accuracy": 100 * own.correct.double().mean().item(), "robust_accuracy": share.estimate, "low": share.low,
        "high": share.high, "both_right": success.images, "attack_success": after, "attack_success_of_base": before,
    }  # fmt: skip
