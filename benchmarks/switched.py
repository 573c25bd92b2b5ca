"""Time the switched network against the plain one, folded alike, on batches that take one path, the other, or both.

python benchmarks/switched.py [-m resnet32a] [--ratio 0.25] [--rounds 40] [--device cpu|cuda] [--output switched.csv]

Weights, patch and router are random: neither times nor multiply-adds depend on their values. Plain and switched
network take turns, so that what else the machine does meets both. The overhead is the median of the ratios of
neighbours, of wall time and of CPU time; `fastest` compares the least CPU time of either, which others disturb least.
The copy of the plain network shows what the figures are worth. On Linux, glibc gives large tensors back to the system
after use and takes page faults to get them again, more or fewer by chance, unless the environment forbids it, as .env
does under `pipenv run`.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable
from functools import partial

import machine
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from deeppatch.artifacts import state_digest
from deeppatch.graph.folding import folded
from deeppatch.graph.hooks import convolutions
from deeppatch.patching.attachment import attach
from deeppatch.patching.names import READ_ANSWERS
from deeppatch.patching.patch_file import Patch, extract
from deeppatch.patching.router import FEATURES, Router
from deeppatch.patching.switched import SwitchedModel
from deeppatch.zoo.architectures import ARCHITECTURES
from deeppatch.zoo.classifier import Classifier


def random_patch(model: Classifier, ratio: float, pixels: Tensor) -> Patch:
    """Return new filters for a share of each layer's channels, near the original ones."""
    layers = convolutions(model.network)
    draws = {name: torch.randperm(conv.out_channels).tolist() for name, conv in layers.items()}
    channels = {name: sorted(order[: max(1, round(ratio * len(order)))]) for name, order in draws.items()}
    attachment = attach(copy.deepcopy(model.network), channels, "replace", model.normalize(pixels))
    with torch.no_grad():
        for unit in attachment.units.values():
            for rows in unit.new_parameters().values():
                rows.add_(0.1 * rows.std() * torch.randn_like(rows))
    return extract(attachment, state_digest(model.state_dict()))


def thresholds(switched: SwitchedModel, kind: str, pixels: Tensor) -> dict[str, float]:
    """Give the model a random router, and return the thresholds that send this batch along one path or along both."""
    features = FEATURES[kind](switched.run_stem(pixels)[1]).double()
    switched.router = Router(kind, torch.randn(features.shape[1]).double(), 0.0, 0.0).to(pixels.device)
    scores = switched.route(pixels)[1]
    return {"all clean": math.inf, "all degraded": -math.inf, "50/50": scores.quantile(0.5).item()}


def seconds(model: nn.Module, pixels: Tensor) -> tuple[float, float]:
    """Return wall time and this process's CPU time of one pass; reading a sum of the logits waits for the device."""
    wall, cpu = time.perf_counter(), time.process_time()
    float(model(pixels).sum())
    return time.perf_counter() - wall, time.process_time() - cpu


def turns(plain: nn.Module, others: dict[str, Callable[[], nn.Module]], pixels: Tensor, rounds: int) -> pd.DataFrame:
    """Return one row for each round and each of the others: its times and those of the plain network beside it."""
    rows = []
    for number in range(-3, rounds):
        for kind, prepared in others.items():
            pair = (prepared(), plain) if number % 2 else (plain, prepared())
            times = {network: seconds(network, pixels) for network in pair}
            (plain_wall, plain_cpu), (wall, cpu) = times.pop(plain), times.popitem()[1]
            rows.append((number, kind, wall, plain_wall, wall / plain_wall, cpu, plain_cpu, cpu / plain_cpu))
    names = ["round", "batch", "wall", "plain_wall", "wall_ratio", "cpu", "plain_cpu", "cpu_ratio"]
    table = pd.DataFrame(rows, columns=names)
    return table[table["round"] >= 0]  # the first passes choose kernels and fill caches


def multiply_adds(model: nn.Module, pixels: Tensor) -> int:
    """Return the multiply-adds of one batch in convolutions and matrix products."""
    with FlopCounterMode(display=False) as counter:
        model(pixels)
    return int(counter.get_total_flops()) // 2


def parser() -> argparse.ArgumentParser:
    """Return the parser of this benchmark's options."""
    found = machine.parser(__doc__ or "")
    found.add_argument("-m", "--model", choices=sorted(ARCHITECTURES), default="resnet32a")
    found.add_argument("--ratio", type=float, default=0.25, metavar="R", help="share of filters (default: 0.25)")
    found.add_argument("--router", choices=sorted({*FEATURES} - {*READ_ANSWERS}), default="probe")
    found.add_argument("-b", "--batch_size", type=int, default=256, metavar="N")
    found.add_argument("--size", type=int, default=32, metavar="N", help="height and width (default: 32)")
    found.add_argument("--rounds", type=int, default=40, metavar="N", help="turns of each (default: 40)")
    return found


@torch.no_grad()
def main() -> None:
    """Print a table, and write it as CSV."""
    options = parser().parse_args()
    device = machine.prepared(options.device)

    pixels = torch.rand(options.batch_size, 3, options.size, options.size, device=device)
    model = Classifier(ARCHITECTURES[options.model](10), [0.5] * 3, [0.25] * 3).to(device).eval()
    switched = SwitchedModel(model, random_patch(model, options.ratio, pixels[:2]), pixels[:2])
    plain = folded(model).to(memory_format=torch.channels_last)
    unfolded = copy.deepcopy(model).to(memory_format=torch.channels_last)
    again = copy.deepcopy(plain)
    limits = thresholds(switched, options.router, pixels)

    def routed(threshold: float) -> nn.Module:
        assert switched.router is not None
        switched.router.threshold.fill_(threshold)
        return switched

    others: dict[str, Callable[[], nn.Module]] = {kind: partial(routed, limit) for kind, limit in limits.items()}
    others |= {"plain, a copy": lambda: again, "plain, not folded": lambda: unfolded}
    table = turns(plain, others, pixels, options.rounds)
    work = multiply_adds(plain, pixels)
    rows = []
    for kind, part in table.groupby("batch", sort=False):
        middle, least, ratio = part.median(numeric_only=True), part.min(numeric_only=True), part["wall_ratio"]
        more = multiply_adds(others[str(kind)](), pixels)
        rows.append({
            "batch": kind, "ms": 1e3 * middle["wall"], "plain_ms": 1e3 * middle["plain_wall"],
            "overhead_percent": 100 * (middle["wall_ratio"] - 1),
            "quartiles": "{:+.1f} to {:+.1f}".format(*(100 * (ratio.quantile([0.25, 0.75]) - 1))),
            "overhead_cpu_percent": 100 * (middle["cpu_ratio"] - 1),
            "overhead_fastest_percent": 100 * (least["cpu"] / least["plain_cpu"] - 1),
            "million_multiply_adds": more / 1e6, "more_multiply_adds_percent": 100 * (more / work - 1),
        })  # fmt: skip
    frame = pd.DataFrame(rows)
    print(f"{machine.heading(device)}; {options.model}, {options.rounds} rounds")
    print(f"plain network, folded: {work / 1e6:.1f} million multiply-adds a batch of {options.batch_size}")
    print(frame.to_string(index=False, float_format="%.2f"))
    machine.write(frame, options, device, images=f"random, batches of {options.batch_size}")


if __name__ == "__main__":
    main()
