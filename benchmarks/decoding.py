"""Time decoding, a mapped file of decoded images, and how long training at 224 pixels waits for its images.

python benchmarks/decoding.py [--images N] [--size N] [--trained N] [-m NAME] [-b 32] [--device cpu|cuda]

JPEG files of random pictures are decoded, as a data loader would do it in every epoch, and once into a mapped file,
from which the same images are read in random order. Then an epoch of training reads from the file; the time that passes
before each batch is there counts as waiting.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import machine
import numpy as np
import pandas as pd
import torch
from PIL import Image

from deeppatch.data import mapped, views
from deeppatch.data.files import Files
from deeppatch.data.images import Images
from deeppatch.data.scaling import square
from deeppatch.training import cross_entropy, sgd, train_epoch
from deeppatch.zoo.classifier import Classifier
from deeppatch.zoo.resolve import resolve

Value = TypeVar("Value")
CLASSES = 10


class Waiting:
    """Batches, and the seconds that passed before each of them was there."""

    def __init__(self, batches: views.Shuffled) -> None:
        self.batches = batches
        self.seconds = 0.0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[views.Batch]:
        start = time.perf_counter()
        for batch in self.batches:
            self.seconds += time.perf_counter() - start
            yield batch
            start = time.perf_counter()


def main() -> None:
    """Print a table, and write it as CSV."""
    options = parser().parse_args()
    device = machine.prepared(options.device)
    mapped.LARGE = 0
    with tempfile.TemporaryDirectory() as folder:
        frame = pd.DataFrame(measured(options, device, Path(folder))).fillna("")
    print(machine.heading(device))
    print(frame.to_string(index=False))
    images = f"{options.images} JPEG files of random pictures, {options.size} pixels; {options.trained} trained on"
    machine.write(frame, options, device, images=images)


def measured(options: argparse.Namespace, device: torch.device, folder: Path) -> Iterator[dict[str, object]]:
    """Yield the rows of the table: what is timed, images a second, and the share of time spent waiting."""
    files = Files(pictures(options, folder), square(options.size))
    seconds, _ = timed(lambda: [files[start : start + 256] for start in range(0, options.images, 256)])
    yield {"what": "decode, as in every epoch", "images a second": round(options.images / seconds)}
    seconds, found = timed(lambda: mapped.decoded(files, folder / "cache"))
    yield {"what": "decode once into the mapped file", "images a second": round(options.images / seconds)}
    order = torch.randperm(options.images, generator=torch.Generator().manual_seed(1))
    seconds, _ = timed(lambda: [found[index] for index in order.split(options.batch_size)])
    yield {"what": "read from the mapped file, in random order", "images a second": round(options.images / seconds)}
    images = Images(found, torch.arange(options.images) % CLASSES).take(order[: options.trained])
    seconds, waiting = epoch(options, images, device)
    share = f"{100 * waiting / seconds:.1f}"
    what = f"an epoch of {options.model}"
    yield {"what": what, "images a second": round(options.trained / seconds, 1), "waiting, percent": share}


def epoch(options: argparse.Namespace, images: Images, device: torch.device) -> tuple[float, float]:
    """Return the seconds of an epoch of training, and how many of them it waited for batches."""
    model = Classifier(resolve(options.model).build(CLASSES)).to(device).train()
    batches = Waiting(views.Shuffled(images.to(device), options.batch_size, machine.SEED, 0, augment=True))
    optimizer, schedule = sgd(model.parameters(), lr=0.01, momentum=0.9, weight_decay=0, steps=len(batches))
    seconds, _ = timed(lambda: train_epoch(model, batches, cross_entropy, optimizer, schedule))
    return seconds, batches.seconds


def timed(call: Callable[[], Value]) -> tuple[float, Value]:
    """Return the seconds that a call takes, and its result."""
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def pictures(options: argparse.Namespace, folder: Path) -> list[str]:
    """Write JPEG files of smooth random pictures, larger than they are used; return their paths."""
    random = np.random.default_rng(machine.SEED)
    paths = []
    for index in range(options.images):
        small = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        path = folder / f"{index:06}.jpg"
        small.resize((options.size * 4 // 3 + 100, options.size + 75), Image.Resampling.BICUBIC).save(path, quality=90)
        paths.append(str(path))
    return paths


def parser() -> argparse.ArgumentParser:
    """Return the parser of this benchmark's options."""
    found = machine.parser(__doc__ or "")
    found.add_argument("-m", "--model", default="torchvision:resnet18", metavar="NAME")
    found.add_argument("-b", "--batch_size", type=int, default=32, metavar="N", help="images per batch (default: 32)")
    found.add_argument("--images", type=int, default=2000, metavar="N", help="image files (default: 2000)")
    found.add_argument("--size", type=int, default=224, metavar="N", help="pixels (default: 224)")
    found.add_argument("--trained", type=int, default=320, metavar="N", help="images of the epoch (default: 320)")
    return found


if __name__ == "__main__":
    main()
