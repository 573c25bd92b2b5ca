"""Attack the networks of a ledger with PGD on the same images, routed ones along each of their paths."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from deeppatch import metrics, runtime
from deeppatch.attack import EPSILONS, SCHEDULES, Logits, Robustness, Schedule, attack, attack_success
from deeppatch.cache import ContentCache, Entry
from deeppatch.data import digest, views
from deeppatch.data.images import Images
from deeppatch.distributed import ranks
from deeppatch.ledger.identity import network_digest
from deeppatch.ledger.measuring import depends_on_neighbours
from deeppatch.progress import info
from deeppatch.zoo.classifier import device_of

Key = tuple[str, float]  # network and radius


def attack_networks(
    networks: Mapping[str, nn.Module],
    images: Images,
    *,
    base: str,
    cells: ContentCache | None = None,
    epsilons: Sequence[float] = EPSILONS,
    schedules: Sequence[Schedule] = SCHEDULES,
    batch_size: int = 256,
    seed: int = 2021,
) -> pd.DataFrame:
    """Return how robust networks are against PGD within L-infinity balls, and against the base.

    Ranks share networks and radii, and every rank returns the whole table.

    Args:
        networks: Classifiers of pixels (N, 3, H, W) in [0, 1]. A routed one is attacked along each path, with its
            decision held, and as a whole; one whose answer depends on the other images of its batch is left out.
        images: The clean images to attack.
        base: The name of the network to compare with.
        cells: Where the result of each network and radius is kept, so that later calls attack what is new (default:
            nowhere).
        epsilons: The radii of the balls, in pixels of [0, 1].
        schedules: The runs of PGD.
        batch_size: The number of images in a batch.
        seed: The seed of the random starts.

    Returns:
        A row for each network and radius, with counts, and shares in percent: `right` and `robust` of all `images`,
        with the exact 95 % interval of the latter; and on the `both_right` images that this network and the base
        classify correctly, for how many of them (`broken`, `broken_of_base`) an attack finds an error of the network
        and of the base, and the attack success rates.

    >>> import torch
    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    >>> images = Images(torch.randint(0, 256, (6, 3, 2, 2), dtype=torch.uint8), torch.arange(6) % 2)
    >>> found = attack_networks({"a": network, "b": network}, images, base="a", epsilons=[0.01])
    >>> found[["network", "images"]].to_numpy().tolist()
    [['a', 6], ['b', 6]]
    """
    left_out = [name for name, network in networks.items() if depends_on_neighbours(network)]
    if left_out:
        info(f"not attacked, because an answer depends on the other images of the batch: {', '.join(left_out)}")
    wanted = [(name, epsilon) for epsilon in epsilons for name in networks if name not in left_out]
    shown = {
        "images": digest.describe({"test": images}, ())["parts"]["test"]["digest"],
        "batch_size": batch_size,
        "schedules": [list(astuple(each)) for each in schedules],
        "seed": seed,
    }
    digests = {name: network_digest(networks[name]) for name, _epsilon in wanted}

    def facts(key: Key) -> dict[str, object]:
        machine = device_of(networks[key[0]]).type
        return {"attack": digests[key[0]], "epsilon": key[1], **shown, "device": machine}

    def known() -> dict[Key, Robustness]:
        entries = {key: cells.read(facts(key)) for key in wanted} if cells else {}
        return {key: Robustness(key[1], **entry.tensors) for key, entry in entries.items() if entry is not None}

    found = ranks.broadcast_from_rank0(known)
    own: dict[Key, Robustness] = {}
    pending = [key for key in wanted if key not in found][runtime.rank() :: runtime.ranks()]
    for number, (name, epsilon) in enumerate(pending, start=1):
        info(f"attack {number} of {len(pending)}: {name} within {epsilon:.4g}")
        paths, decide = routed_paths(networks[name])
        batches = views.clean(images.to(device_of(networks[name])), batch_size)
        each = attack(
            networks[name], batches, epsilon=epsilon, paths=paths, decide=decide, schedules=schedules, seed=seed
        )
        own[name, epsilon] = Robustness(epsilon, each.correct.cpu(), each.robust.cpu())
        if cells:
            cells.write(facts((name, epsilon)), Entry({"correct": each.correct.cpu(), "robust": each.robust.cpu()}))
    for part in ranks.all_gather(own):
        found |= part
    return pd.DataFrame([_row(name, found[name, epsilon], found.get((base, epsilon))) for name, epsilon in wanted])


def routed_paths(network: nn.Module) -> tuple[dict[str, Logits] | None, Callable[[Tensor], Tensor] | None]:
    """Return the paths of a routed network, from pixels to logits, and its decision between them; None for others.

    The last of them is the network itself, whose decision may change on the way; an average of paths is neither path.
    A bank of statistics is such a network, too: its `selector` says the condition of each image.
    """
    route, answer, selector = (getattr(network, name, None) for name in ("route", "answer", "selector"))
    if callable(answer) and callable(selector):
        conditions = range(len(network.scale))  # type: ignore[arg-type]
        paths = {str(each): _with_condition(answer, each) for each in conditions}
        return {**paths, "whole": network}, selector
    look = getattr(network, "look", getattr(network, "run_stem", None))
    ends = getattr(network, "networks", None) or [getattr(network, name, None) for name in ("original", "patched")]
    if not callable(route) or not callable(look) or not all(map(callable, ends)):
        return None, None
    paths = {str(number): _through(look, end) for number, end in enumerate(ends)}
    paths["whole"] = network
    if callable(answer):
        return paths, lambda pixels: answer(pixels).expert
    return paths, lambda pixels: route(pixels)[-1].long()


def _through(look: Callable[[Tensor], Any], end: Callable[..., Tensor]) -> Logits:
    return lambda pixels: end(*look(pixels)[0])


def _with_condition(answer: Callable[[Tensor, Tensor], Tensor], condition: int) -> Logits:
    return lambda pixels: answer(pixels, torch.full((len(pixels),), condition, device=pixels.device))


def _row(name: str, own: Robustness, base: Robustness | None) -> dict[str, Any]:
    images, right, robust = len(own.robust), int(own.correct.sum()), int(own.robust.sum())
    share = metrics.share_interval(robust, images).scaled(100)
    row = {
        "network": name,
        "epsilon": own.epsilon,
        "images": images,
        "right": right,
        "accuracy": 100 * right / images,
        "robust": robust,
        "robust_accuracy": share.estimate,
        "low": share.low,
        "high": share.high,
    }
    if base is None:  # its answers depend on the batch
        return row
    success = attack_success(base, own)
    before, after = success.percent
    return row | {
        "both_right": success.images,
        "broken": success.after,
        "broken_of_base": success.before,
        "attack_success": after,
        "attack_success_of_base": before,
    }
