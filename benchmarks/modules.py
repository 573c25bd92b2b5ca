"""Time the genetic search for modules against its plain definition: candidates a second, seconds a generation.

python benchmarks/modules.py --weights FILE [-m simcnn] [-d cifar10] [--images 400] [--device cpu|cuda]

Plain (modules_plain.py): each candidate is the whole network with its kernels silenced, one pass through a data loader
with worker processes that decode image by image; dissimilarities are set operations on kernels, compositions are rated
one by one in a pool of processes. A sample of it is timed, and its size is printed. Ours: whole generations of the
search as modularize runs it, on the same images, and on a quarter of them as modularize reads 2,500 of the 10,000 that
the published search reads. After every fourth batch of our candidates one of the plain way has its turn, in one
process. Which candidates need not see all images depends on the logits of the network, so that --weights should be a
trained one's, and on how many compositions reach the preset's thresholds: with --most every merge keeps as many as it
may.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import machine
import modules_plain as plain
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from deeppatch import runtime
from deeppatch.data.images import Images
from deeppatch.data.sources import load
from deeppatch.data.splits import subset
from deeppatch.graph.folding import folded
from deeppatch.modular import composition
from deeppatch.modular.genetic import PopulationSearch, SearchRecord
from deeppatch.modular.genome import Genome
from deeppatch.modular.importance import importances, orders
from deeppatch.modular.layers import Layer, find_layers
from deeppatch.modular.masking import replicas_of, sliced_logits
from deeppatch.modular.presets import PRESETS, sizes, thresholds
from deeppatch.modular.winograd import optimize_for_cpu
from deeppatch.zoo import weights
from deeppatch.zoo.architectures import ARCHITECTURES

OURS, QUARTER = "ours", "ours, a quarter of the images"
CLASSES = 10
PRESET = PRESETS["simcnn-cifar10"]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass
class Subject:
    """A network, its layers, the order of their kernels for each class, and test images with their inputs x."""

    network: nn.Module
    layers: list[Layer]
    genomes: list[Genome]
    images: Images
    x: Tensor


@dataclass
class Timed:
    """Our search on the first of some images, by generation: seconds in candidates, in all, and compositions by size.

    After some batches of candidates `turn` is called with the first one's masks, in time that does not count.
    """

    subject: Subject
    images: int
    options: argparse.Namespace
    turn: Callable[[Sequence[Tensor]], object] = len
    seconds: list[float] = field(default_factory=lambda: [0.0])
    whole: list[float] = field(default_factory=list)
    compositions: list[Counter[int]] = field(default_factory=lambda: [Counter()])
    kernels: list[Tensor] = field(default_factory=list)
    strong: float = 0.0
    start: float = 0.0

    def run(self) -> SearchRecord:
        """Search; return how generations did."""
        network, layers, device = self.subject.network, self.subject.layers, self.subject.x.device
        self.x, labels = self.subject.x[: self.images], self.subject.images.labels[: self.images].to(device)
        self.quick = optimize_for_cpu(network)
        self.replicas = replicas_of(self.quick)
        with torch.inference_mode():
            predictions = torch.cat([network(part) for part in self.x.split(256)]).argmax(1)
        self.strong = (predictions == labels).double().mean().item()
        preset = replace(PRESET, population=self.options.population)
        sensitive = [index for index in preset.sensitive or () if index < len(layers)]
        ones = torch.ones(sum(layer.kernels for layer in layers), device=device)
        marks = thresholds(preset, CLASSES, self.strong)
        if self.options.most:
            marks = dict.fromkeys(marks, 0.0)
        search = PopulationSearch(
            self.subject.genomes, self.evaluate, self.done, labels, ones, preset, sensitive, marks, 2021
        )
        merge = composition.merge

        def counted(a: composition.Compositions, b: composition.Compositions, *rest: Any) -> Any:
            self.compositions[-1][len(a.classes + b.classes)] += len(a.members) * len(b.members)
            return merge(a, b, *rest)

        self.start = time.perf_counter()
        with patch.object(composition, "merge", counted):
            return search.run(self.options.generations - 1)[1]

    def evaluate(self, label: int, kept: Sequence[Tensor], samples: Tensor) -> Tensor:
        """Return the logits of candidates; now and then let the plain way have its turn."""
        found: list[Tensor] = []

        def ours() -> None:
            logits = sliced_logits(self.quick, self.subject.layers, kept, self.x[samples], replicas=self.replicas)
            found.append(logits[:, :, label])

        self.seconds[-1] += runtime.seconds(ours, samples.device)
        if len(self.kernels) % self.options.every == 0:
            before = time.perf_counter()
            self.turn([mask[:1] for mask in kept])
            self.start += time.perf_counter() - before
        self.kernels.append(torch.cat(tuple(kept), 1))
        return found[0]

    def done(self, _masks: Sequence[Tensor]) -> float:
        """End a generation, in place of measuring its winners on other images."""
        self.whole.append(time.perf_counter() - self.start)
        self.seconds.append(0.0)
        self.compositions.append(Counter())
        self.start = time.perf_counter()
        return 0.0

    def rows(self, side: str, record: SearchRecord) -> list[dict[str, Any]]:
        """Return one row for each generation."""
        passes = CLASSES * self.options.population * self.images
        return [
            row(side, index, self.images, record.passes[index] / passes, record.evaluated[index] / self.seconds[index],
                whole - self.seconds[index], whole)
            for index, whole in enumerate(self.whole)
        ]  # fmt: skip


def row(
    side: str, generation: int, images: int, run: float, candidates: float, composing: float, whole: float
) -> dict[str, Any]:
    """Return one row of the table."""
    return {
        "side": side, "generation": generation, "images": images, "share_of_passes": run,
        "candidates_a_second": candidates, "composing_seconds": composing, "generation_seconds": whole,
    }  # fmt: skip


def given(options: argparse.Namespace, device: torch.device) -> tuple[Subject, DataLoader]:
    """Return what is searched, with --weights or at random, and the plain way's loader of the same test images."""
    network, mean, std = ARCHITECTURES[options.model](CLASSES), MEAN, STD
    if options.weights:
        state = weights.read(options.weights)
        mean, std = (state.pop(f"normalize.{key}").flatten().tolist() for key in ("mean", "std"))
        weights.load_network(network, {k.removeprefix("network."): v for k, v in state.items()}, options.weights)
    network = folded(network.eval()).to(device, memory_format=torch.channels_last)
    source = load(options.dataset, options.data_dir, 1)
    images = subset(source.test, options.images, 2021, options.dataset)
    loader = DataLoader(plain.Decoded(images.pixels, mean, std), 128, num_workers=2)
    x = torch.cat(list(loader)).to(device, memory_format=torch.channels_last)
    train = subset(source.train, 10 * options.images, 2021, options.dataset)
    inputs = torch.cat(list(DataLoader(plain.Decoded(train.pixels, mean, std), 256)))
    inputs = inputs.to(device, memory_format=torch.channels_last)
    layers = find_layers(network, x[:2])
    values = importances(network, layers, inputs, train.labels.to(device), CLASSES)
    genomes = [Genome(orders(values, label)) for label in range(CLASSES)]
    return Subject(network, layers, genomes, images, x), loader


def parser() -> argparse.ArgumentParser:
    """Return the parser of this benchmark's options."""
    found = machine.parser(__doc__ or "")
    found.add_argument("-m", "--model", choices=sorted(ARCHITECTURES), default="simcnn")
    found.add_argument("--weights", type=Path, help="what pretrain left: weights.safetensors (default: random)")
    found.add_argument("-d", "--dataset", default="cifar10")
    found.add_argument("--data_dir", type=Path, default=Path("data"))
    found.add_argument("--images", type=int, default=400, help="test images that rate candidates (default: 400)")
    found.add_argument("--population", type=int, default=100)
    found.add_argument("--generations", type=int, default=2, help="of our search, timed whole (default: 2)")
    found.add_argument("--every", type=int, default=4, help="batches of ours for one plain candidate (default: 4)")
    found.add_argument("--most", action="store_true", help="every merge keeps as many compositions as it may")
    found.add_argument("--compositions", type=int, default=2000, help="timed on the plain side (default: 2000)")
    return found


def main() -> None:
    """Print both sides' figures, and how many times as fast ours is."""
    options = parser().parse_args()
    device = machine.prepared(options.device)
    print(machine.heading(device))
    subject, loader = given(options, device)
    network, layers, times = subject.network, subject.layers, []

    def turn(kept: Sequence[Tensor]) -> None:
        times.append(runtime.seconds(lambda: plain.candidate(network, layers, kept, loader), device))

    equal = Timed(subject, options.images, options, turn)
    few = Timed(subject, options.images // 4, options)
    rows = equal.rows(OURS, equal.run()) + few.rows(QUARTER, few.run())
    kernels, each = torch.cat(equal.kernels), statistics.median(times)
    logits = torch.randn(CLASSES, options.population, options.images)
    labels = subject.images.labels
    one = plain.composition_seconds(logits, labels, sizes(CLASSES), options.compositions)
    pairs = plain.pair_seconds(kernels[:40]) * CLASSES * (CLASSES - 1) / 2 * options.population**2
    for index, counts in enumerate(equal.compositions[:-1]):
        composing = pairs + sum(one[size] * count for size, count in counts.items())
        whole = CLASSES * options.population * each + composing
        rows.insert(index, row("plain", index, options.images, 1, 1 / each, composing, whole))
        print(f"generation {index}: {sum(counts.values())} compositions")
    table = pd.DataFrame(rows)
    plainly = table[table.side == "plain"].set_index("generation").loc[table.generation].reset_index()
    table["candidates_times_as_fast"] = table.candidates_a_second / plainly.candidates_a_second
    table["generation_times_as_fast"] = plainly.generation_seconds / table.generation_seconds
    print(table.to_string(index=False, float_format="%.3g"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(f"{options.model}, {100 * equal.strong:.1f} % of {options.images} images correct; {CLASSES} x "
          f"{options.population} candidates that keep {100 * kernels.float().mean():.1f} % of the kernels; "
          f"plain: median of {len(times)} candidates, {options.compositions} compositions; "
          f"peak memory {peak:.0f} MiB")  # fmt: skip
    machine.write(table, options, device, images=f"{options.images} test images of {options.dataset}")


if __name__ == "__main__":
    main()
