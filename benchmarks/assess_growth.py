"""Time how the cost of an exact ranking grows: with depth, with the number of images at a time, and with width.

python benchmarks/assess_growth.py [--filters 4] [--rounds 3] [--device cpu|cuda] [--output benchmarks.csv]

From every layer some filters are ablated, and the times added up by width. Beside the time stand the multiply-adds that
were really run, counted, and what share that is of the machine's peak in a large matrix product.
"""

from __future__ import annotations

import argparse
import statistics

import machine
import pandas as pd
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from deeppatch import runtime
from deeppatch.graph.hooks import convolutions
from deeppatch.graph.network_graph import Graph
from deeppatch.localization.ablation import DegradedBatch, graph_ablation
from deeppatch.zoo.resnet_cifar import CifarResNet

# blocks a stage, width, images at a time
CASES = {
    "resnet20": (3, 16, 256), "resnet32": (5, 16, 256), "resnet44": (7, 16, 256),
    "resnet20, 64 at a time": (3, 16, 64), "resnet20, 1024 at a time": (3, 16, 1024),
    "resnet20, twice as wide": (3, 32, 256), "resnet20, four times as wide": (3, 64, 256),
}  # fmt: skip


@torch.inference_mode()
def measure(network: nn.Module, images: torch.Tensor, filters: int, rounds: int) -> tuple[int, float, float]:
    """Return the network's number of filters, and seconds and multiply-adds of ranking them all, per image."""
    device, count = images.device, len(images)
    ablation = graph_ablation(Graph(network, images[:2]), swap=False)
    batch = DegradedBatch(images, torch.zeros(count, dtype=torch.int64, device=device))
    edited = ablation(batch)
    widths = {name: conv.out_channels for name, conv in convolutions(network).items()}
    seconds: dict[str, list[float]] = {name: [] for name in widths}
    adds = {}
    for name, width in widths.items():
        with FlopCounterMode(display=False) as counter:
            edited(name, 0)
        adds[name] = counter.get_total_flops() / 2 * width
    for _ in range(rounds):
        for name, width in widths.items():
            spent = runtime.seconds(lambda name=name: [edited(name, c).argmax(1) for c in range(filters)], device)
            seconds[name].append(spent / filters * width)
    whole = sum(statistics.median(values) for values in seconds.values())
    return sum(widths.values()), whole / count, sum(adds.values()) / count


def parser() -> argparse.ArgumentParser:
    """Return the parser of this benchmark's options."""
    found = machine.parser(__doc__ or "")
    found.add_argument("--filters", type=int, default=4, help="filters of each layer (default: 4)")
    found.add_argument("--rounds", type=int, default=3, help="medians of so many (default: 3)")
    return found


def main() -> None:
    """Print a table, and write it as CSV."""
    options = parser().parse_args()
    device = machine.prepared(options.device)
    fastest = machine.peak(device)
    rows = []
    for name, (blocks, width, count) in tqdm(CASES.items(), leave=False):
        network = CifarResNet(blocks, 10, "A", width).to(device, memory_format=torch.channels_last).eval()
        images = torch.randn(count, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
        filters, seconds, adds = measure(network, images, options.filters, options.rounds)
        rows.append({
            "network": name, "filters": filters, "fitting_batch_size": count, "ms_an_image": 1e3 * seconds,
            "us_a_filter_and_image": 1e6 * seconds / filters, "million_multiply_adds_an_image": adds / 1e6,
            "percent_of_peak": 100 * adds / seconds / fastest,
        })  # fmt: skip
    table = pd.DataFrame(rows)
    print(f"{machine.heading(device)}; peak {fastest:.3g} multiply-adds/s")
    print(table.to_string(index=False, float_format="%.3g"))
    machine.write(table.assign(peak_multiply_adds=fastest), options, device, images="random, as many as at a time")


if __name__ == "__main__":
    main()
