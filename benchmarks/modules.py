"""Time the genetic search for modules against its plain definition: candidates a second, seconds a generation.

Plain: each candidate is the whole network with its kernels silenced, one pass through a data loader with worker
processes that decode image by image; dissimilarities are set operations on kernels, compositions are rated one by one
in a pool of processes. Ours: smaller networks on images that lie on the device, on a CPU with convolutions by tiles
where they are wide; one product for all dissimilarities, compositions from cached logits; on the same images, and on a
quarter of them, as modularize reads 2,500 of the 10,000 that the published search reads. All sides run in turn in one
process; what is sampled of the plain side is said.
"""

from __future__ import annotations

import itertools
import resource
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from machine import heading, parser, prepared, write
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from deeppatch import runtime
from deeppatch.data.sources import load
from deeppatch.modular.composition import Weights, beam, dissimilarity
from deeppatch.modular.genetic import first
from deeppatch.modular.genome import Genome
from deeppatch.modular.layers import find
from deeppatch.modular.masking import by_slices, masked
from deeppatch.modular.presets import PRESETS, sizes
from deeppatch.modular.winograd import quickened
from deeppatch.progress import info
from deeppatch.zoo.architectures import ARCHITECTURES

PLAIN, OURS, QUARTER = "plain", "ours", "ours, a quarter of the images"
CLASSES = 10
PRESET = PRESETS["simcnn-cifar10"]


class Decoded(Dataset):
    """Images that are decoded and normalised one by one, as a plain search reads them."""

    def __init__(self, pixels: np.ndarray) -> None:
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        self.pixels = pixels
        self.prepare = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.prepare(Image.fromarray(self.pixels[index]))


def rate(task: tuple) -> tuple[float, float]:
    """Rate one composition by its definition: accuracy over its classes' images, and mean dissimilarity."""
    classes, logits, labels, pairs = task
    own = np.isin(labels, classes)
    answers = np.asarray(classes)[np.stack(logits)[:, own].argmax(0)]
    return float((answers == labels[own]).mean()), sum(pairs) / len(pairs)


def main() -> None:
    """Print both sides' figures and the median ratio of rounds."""
    options = parser(__doc__)
    options.add_argument("--model", default="simcnn")
    options.add_argument("-d", "--dataset", default="cifar10")
    options.add_argument("--data_dir", type=Path, default=Path("data"))
    options.add_argument("--images", type=int, default=200, help="that the plain way runs candidates on")
    options.add_argument("--population", type=int, default=100)
    options.add_argument("--candidates", type=int, default=8, help="candidates a round that are timed")
    options.add_argument("--compositions", type=int, default=2000, help="of a generation's, timed on the plain side")
    options.add_argument("--rounds", type=int, default=5)
    options = options.parse_args()
    device = prepared(options.device)
    print(heading(device))
    network = ARCHITECTURES[options.model](CLASSES).eval().to(device, memory_format=torch.channels_last)
    images = load(options.dataset, options.data_dir, 1).train
    pixels = images.pixels[: options.images].permute(0, 2, 3, 1).numpy()
    loader = DataLoader(Decoded(pixels), 128, num_workers=2)
    x = torch.cat(list(loader)).to(device, memory_format=torch.channels_last)
    layers = find(network, x[:2])
    quick = quickened(network)
    kernels = population(layers, options.population).to(device)
    parts = kernels.flatten(0, 1).split([layer.kernels for layer in layers], 1)

    def plain_candidates(rows: slice) -> None:
        for row in range(rows.start, rows.stop):
            with masked(network, layers, [part[row : row + 1] for part in parts]), torch.no_grad():
                for batch in loader:
                    network(batch.to(device))

    def our_candidates(rows: slice, count: int) -> None:
        by_slices(quick, layers, [part[rows] for part in parts], x[:count])

    read = {OURS: options.images, QUARTER: options.images // 4}
    times: dict[str, list[float]] = {name: [] for name in (PLAIN, *read)}
    for turn in range(options.rounds):
        rows = slice(turn * options.candidates, (turn + 1) * options.candidates)
        times[PLAIN].append(runtime.seconds(lambda: plain_candidates(rows), device))  # noqa: B023
        for name, count in read.items():
            times[name].append(runtime.seconds(lambda: our_candidates(rows, count), device))  # noqa: B023
    labels = images.labels[: options.images]
    logits = torch.randn(CLASSES, options.population, options.images)
    logits += 2 * (labels == torch.arange(CLASSES).view(-1, 1))[:, None]
    together = {PLAIN: plain_composing(options, kernels.cpu(), logits, labels)}
    for name, count in read.items():
        some, own = logits[..., :count].contiguous().to(device), labels[:count].to(device)
        together[name] = min(composing(kernels, some, own, device) for _ in range(3))
    fresh = CLASSES * (options.population - replace(PRESET, population=options.population).kept)
    count = {PLAIN: CLASSES * options.population, OURS: fresh, QUARTER: fresh}  # elites are not run again
    each = {name: statistics.median(times[name]) / options.candidates for name in times}
    table = pd.DataFrame({"side": list(times), "images": [options.images, *read.values()]})
    table["candidates_a_second"] = [1 / each[name] for name in times]
    table["composing_seconds_a_generation"] = [together[name] for name in times]
    table["seconds_a_generation"] = [count[name] * each[name] + together[name] for name in times]
    print(table.to_string(index=False, float_format="%.3g"))
    whole = table.set_index("side")["seconds_a_generation"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    for name in read:
        ratio = statistics.median(p / o for p, o in zip(times[PLAIN], times[name], strict=True))
        print(f"{name}: candidates {ratio:.1f} times as fast (median of {options.rounds} rounds), "
              f"a generation {whole[PLAIN] / whole[name]:.1f} times")  # fmt: skip
    size = f"{options.model}, {options.images} images, {CLASSES} x {options.population} candidates"
    print(f"{size} that keep {100 * kernels.float().mean():.1f} % of the kernels; peak memory {peak:.0f} MiB")
    write(table, options, device)


def population(layers: list, count: int) -> torch.Tensor:
    """Return the kernels (classes, count, kernels) of the preset's first candidates; importance is drawn."""
    found = []
    for number in range(CLASSES):
        draw = np.random.default_rng(number)
        genome = Genome([draw.permutation(layer.kernels) for layer in layers])
        bits = first(genome, replace(PRESET, population=count), PRESET.sensitive or (), draw)
        found.append(torch.from_numpy(np.concatenate(genome.decode(bits), 1)))
    return torch.stack(found)


def composing(kernels: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor, device: torch.device) -> float:
    """Return the seconds of one generation's dissimilarities and beam search; every merge keeps as many as it may."""

    def once() -> None:
        flat = kernels.flatten(0, 1)
        unlike = dissimilarity(flat).view(*kernels.shape[:2], *kernels.shape[:2])
        thresholds = dict.fromkeys(sizes(CLASSES), 0.0)
        beam(logits, labels, unlike, flat.float().mean(1).view(kernels.shape[:2]), range(CLASSES), Weights(0.9, 0.1),
             thresholds)  # fmt: skip

    return runtime.seconds(once, device)


def plain_composing(options, kernels: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the seconds of one generation by the definition: a sample of pairs and compositions, extrapolated."""
    sets = [[set(np.flatnonzero(row)) for row in part[:20].numpy()] for part in kernels]
    everything = ((a, b) for one, two in itertools.combinations(sets, 2) for a in one for b in two)
    pairs = list(itertools.islice(everything, 500))
    start = time.perf_counter()
    for a, b in pairs:
        _ = 1 - len(a & b) / len(a | b)
    number = CLASSES * (CLASSES - 1) // 2 * options.population**2
    jaccard = (time.perf_counter() - start) / len(pairs) * number
    # five merges of populations, two of what they keep, one of four and four classes, one of eight and two
    counts = {2: 5 * options.population**2, 4: 2 * 500**2, 8: 500**2, 10: 500**2}
    draw, total = np.random.default_rng(3), 0.0
    with ProcessPoolExecutor() as pool:
        list(pool.map(rate, [task(2, logits, labels, draw)] * 8))
        for size, how_many in counts.items():
            tasks = [task(size, logits, labels, draw) for _ in range(options.compositions // len(counts))]
            start = time.perf_counter()
            list(pool.map(rate, tasks, chunksize=32))
            total += (time.perf_counter() - start) / len(tasks) * how_many
    info(f"plain: set operations {jaccard:.0f} s, compositions {total:.0f} s a generation, from {len(pairs)} pairs and "
         f"{options.compositions} of {sum(counts.values())} compositions")  # fmt: skip
    return jaccard + total


def task(size: int, logits: torch.Tensor, labels: torch.Tensor, draw: np.random.Generator) -> tuple:
    """Return one random composition as a process of the pool reads it."""
    chosen = [logits[number, draw.integers(logits.shape[1])].numpy() for number in range(size)]
    return list(range(size)), chosen, labels.numpy(), [0.5] * (size * (size - 1) // 2)


if __name__ == "__main__":
    main()
