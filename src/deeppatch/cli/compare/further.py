"""What compare measures beside the ledger where it is asked: attacks, and adaptation at test time on streams."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from deeppatch import metrics
from deeppatch.adapt.measure import run_streams
from deeppatch.adapt.names import STREAMS
from deeppatch.cli.context import Context
from deeppatch.data.streams import choose_images
from deeppatch.ledger.attacking import attack_networks
from deeppatch.report import scores

LARGEST_BATCH = 200  # of streams, as published


def write_attacks(context: Context, networks: Mapping[str, nn.Module], base: str) -> None:
    """Attack all networks on some clean test images, write attack.csv and print it."""
    options, test = context.options, context.data.test
    chosen = test.take(choose_images(test, options.attack, options.seed).to(test.labels.device))
    table = attack_networks(networks, chosen, base=base, batch_size=options.batch_size, seed=options.seed)
    context.stage.write_table("attack.csv", table)
    print(f"PGD on {len(chosen)} clean test images, within an L-infinity ball of radius epsilon\n")
    print(scores.format_table(table))
    print("\n" + "\n".join(metrics.explained(["robust_accuracy", "attack_success"])) + "\n")


def write_adaptation(context: Context, networks: Mapping[str, nn.Module], base: str) -> None:
    """Measure methods of test-time adaptation and all networks on streams, write two tables and print one."""
    options = context.options
    found = run_streams(
        networks[base],
        context.data,
        context.corruption,
        methods=options.adapt,
        streams=options.stream or STREAMS,
        networks=networks,
        reference=base,
        batch_size=min(options.batch_size, LARGEST_BATCH),
        seed=options.seed,
    )
    table = found.by_stream()
    context.stage.write_table("adaptation.csv", table)
    context.stage.write_table("adaptation_by_level.csv", found.by_type())
    print("streams of degraded images; the difference is to the base, with its 95 % interval over images\n")
    print(scores.format_table(table) + "\n")
