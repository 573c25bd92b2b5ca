"""How long the networks take for an image: compare --latency."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pandas as pd
from torch import Tensor, nn

from deeppatch.cli.context import Context
from deeppatch.data import views
from deeppatch.distributed import ranks
from deeppatch.ledger.latency import LARGE_BATCH, latencies
from deeppatch.ledger.ledger import Ledger
from deeppatch.ledger.records import LATENCY
from deeppatch.report import scores

MEANING = (
    "milliseconds an image, the median over runs on {hardware} ({device}, {threads} threads), images of the mixed "
    "stream; another machine, or other work on it, gives other figures"
)


def write_latency(context: Context, ledger: Ledger, networks: Mapping[str, nn.Module]) -> Ledger:
    """Measure each network with single images and with a batch, write latency.csv and print it.

    Returns:
        The ledger with the milliseconds of a single image as the fact `latency_ms` of each network. Neither ledger.csv
        nor ledger.json has them, so that equal runs leave equal files.
    """
    options = context.options

    def measured() -> pd.DataFrame:
        return latencies(networks, first_images(context).to(context.device), amp=options.amp)

    table = ranks.broadcast_from_rank0(measured)
    context.stage.write_table("latency.csv", table)
    batches = table["batch"].map(lambda size: "alone" if size == 1 else f"batch of {size}")
    wide = table.assign(batch=batches).pivot_table("milliseconds", "network", "batch", sort=False)
    print(scores.format_table(wide.reset_index()))
    print(f"\nlatency: {MEANING.format(**table.iloc[0])}\n")
    alone = table[table["batch"] == 1].set_index("network")["milliseconds"]
    rows = {
        name: replace(row, facts={**row.facts, LATENCY: float(alone[name])}) for name, row in ledger.networks.items()
    }
    return replace(ledger, networks=rows)


def first_images(context: Context) -> Tensor:
    """Return the first images of the mixed stream, of which half are degraded."""
    stream = views.mixed_stream(context.data.test, context.corruption, LARGE_BATCH, context.options.seed)
    return next(pixels for pixels, _labels in stream)
