"""What compare measures beside the ledger where it is asked: attacks, adaptation at test time, and latency."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from deeppatch.adapt.names import METHODS, STREAMS

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from deeppatch.cli.context import Context
    from deeppatch.ledger.ledger import Ledger

OF_ATTACK, OF_ADAPTATION = ("attack_images",), ("stream", "per_corruption", "single", "adapt_batch")
GATE = "gate"  # --attack without a value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of these measurements."""
    group = parser.add_argument_group("beside the table")
    group.add_argument(
        "--adapt",
        nargs="+",
        choices=METHODS,
        default=[],
        metavar="NAME",
        help="measure methods of test-time adaptation beside all networks, on streams of degraded images: "
        f"{', '.join(METHODS)}",
    )
    group.add_argument(
        "--stream",
        nargs="+",
        choices=STREAMS,
        default=[],
        metavar="NAME",
        help=f"the streams of --adapt: {', '.join(STREAMS)} (default: all)",
    )
    group.add_argument(
        "--per_corruption", type=int, default=200, metavar="N", help="images at each level of a stream (default: 200)"
    )
    group.add_argument(
        "--single", type=int, default=20, metavar="N", help="images at each level of the stream single (default: 20)"
    )
    group.add_argument(
        "--adapt_batch", type=int, default=200, metavar="N", help="images in a batch of a stream (default: 200)"
    )
    group.add_argument(
        "--attack",
        nargs="?",
        choices=(GATE, "all"),
        const=GATE,
        help="attack the base and the network of --gate with PGD, or all networks with --attack all (default: none)",
    )
    group.add_argument(
        "--attack_images", type=int, default=500, metavar="N", help="clean test images to attack (default: 500)"
    )
    group.add_argument(
        "--latency", action="store_true", help="measure how long each network takes for an image on this device"
    )


def problems(options: Any) -> list[str]:
    """Return the problems with these options."""
    messages = []
    for owner, names in (("attack", OF_ATTACK), ("adapt", OF_ADAPTATION)):
        given = [f"--{name}" for name in names if getattr(options, name) != options.defaults.get(name)]
        if given and not getattr(options, owner):
            messages.append(f"{', '.join(given)}: nothing reads this without --{owner}; add --{owner}, or leave it out")
    for name in (*OF_ATTACK, *OF_ADAPTATION[1:]):
        if getattr(options, name) < 1:
            messages.append(f"--{name} {getattr(options, name)}: give at least 1 image")
    return messages


def check(context: Context, names: list[str], target: str | None, left_out: np.ndarray) -> None:
    """Raise UserError where a measurement that is asked for cannot be made, before anything is measured.

    Args:
        context: The run.
        names: The names of the networks beside the base.
        target: The network that requirements are about, if there is one.
        left_out: The numbers of test images that routers were calibrated on.
    """
    from deeppatch.cli.compare import adapting, attacking

    if context.options.attack:
        attacking.attacked(context.options.attack, names, target)
    if context.options.adapt:
        adapting.check(context, left_out)


def write_tables(
    context: Context, ledger: Ledger, networks: Mapping[str, nn.Module], target: str | None, left_out: np.ndarray
) -> Ledger:
    """Measure what is asked for, write its tables, and print them; return the ledger, with latencies among its facts.

    Args:
        context: The run.
        ledger: The ledger of all networks.
        networks: These networks by name.
        target: The network that requirements are about, if there is one.
        left_out: The numbers of test images that routers were calibrated on.
    """
    from deeppatch.cli.compare import adapting, attacking, timing

    if context.options.attack:
        attacking.write_attacks(context, networks, ledger.base, target, left_out)
    if context.options.adapt:
        adapting.write_adaptation(context, networks, ledger.base, target, left_out)
    return timing.write_latency(context, ledger, networks) if context.options.latency else ledger
