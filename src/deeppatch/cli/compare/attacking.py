"""How robust the networks are against small changes of the images: compare --attack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from deeppatch import metrics
from deeppatch.cli.compare.inputs import cells
from deeppatch.cli.context import Context
from deeppatch.data.images import Images
from deeppatch.data.streams import choose_images
from deeppatch.errors import UserError
from deeppatch.ledger.attacking import attack_networks
from deeppatch.report import scores


def write_attacks(
    context: Context, networks: Mapping[str, nn.Module], base: str, target: str | None, left_out: np.ndarray
) -> None:
    """Attack the base and the network that is judged, or all networks; write attack.csv and print it."""
    options, test = context.options, without(context.data.test, left_out)
    chosen = test.take(choose_images(test, options.attack_images, options.seed).to(test.labels.device))
    names = attacked(options.attack, [name for name in networks if name != base], target)
    table = attack_networks(
        {name: networks[name] for name in (base, *names)},
        chosen,
        base=base,
        cells=cells(options),
        batch_size=options.batch_size,
        seed=options.seed,
    )
    context.stage.write_table("attack.csv", table)
    print(
        f"PGD on {len(chosen)} clean test images, within L-infinity balls of radius epsilon (a change of each pixel in "
        "[0, 1]), a routed network along each of its paths and as a whole\n"
    )
    print(scores.format_table(table.assign(epsilon=table["epsilon"].map("{:.4f}".format))))
    print("\n" + "\n".join(metrics.explained(["robust_accuracy", "attack_success"])))
    print(f"broken: of the both_right images, which {base} and the network classify correctly, those with an error\n")


def attacked(which: str, names: Sequence[str], target: str | None) -> list[str]:
    """Return the networks to attack beside the base; UserError where the one that is judged is not known."""
    if which == "all":
        return list(names)
    if target is None:
        raise UserError(
            f"--attack: choose the network to attack with --gate: {', '.join(names)}; or attack all with --attack all"
        )
    return [target]


def without(images: Images, left_out: np.ndarray) -> Images:
    """Return the other images than those of these numbers."""
    if not len(left_out):
        return images
    kept = np.setdiff1d(np.arange(len(images)), left_out)
    return images.take(torch.from_numpy(kept).to(images.labels.device))
