"""Time what HybridRepair does most: AugMix views, BADGE's choice, and one whole selection, against the usual ways.

python benchmarks/hybrid_views.py [-m mobilenet] [--images 256] [--pool 2000] [--whole 35000] [--rounds 5]
                                  [--device cpu|cuda] [--output hybrid.csv]

Views: whole batches as tensors against torchvision's AugMix, image by image in the worker processes of a DataLoader,
one for each thread. BADGE: distances by products against gradients written out, on random predictions and features of
the network's width. A step of the safe recipe: with its views, against its forward and backward passes
only. Both of a pair take turns; times are medians. Selection: each part once, on images of noise.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import machine
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import AugMix

from deeppatch import runtime
from deeppatch.data.augmix import views
from deeppatch.data.images import Images
from deeppatch.distributed.data_parallel import Stream
from deeppatch.hybrid.clusters import cluster_pool
from deeppatch.hybrid.confidence import PseudoLabelling
from deeppatch.hybrid.diversity import diverse_gradients
from deeppatch.hybrid.oracle import Oracle
from deeppatch.hybrid.safe_training import SafeData, SafeEpoch, SafeRecipe, SafeState, safe_loss
from deeppatch.hybrid.selection_inputs import SelectionInputs
from deeppatch.hybrid.selection_methods import METHODS
from deeppatch.training import constant_sgd, train_epoch
from deeppatch.zoo.architectures import ARCHITECTURES
from deeppatch.zoo.classifier import Classifier

CLASSES = 10


class OneByOne(Dataset[Tensor]):
    """Views of one image after the other, float32 (count + 1, 3, H, W) in [0, 1]."""

    def __init__(self, pixels: Tensor, count: int) -> None:
        self.pixels = pixels
        self.count = count
        # the operations and the mixture of HybridRepair
        self.augment = AugMix(severity=3, mixture_width=1, chain_depth=-1, alpha=1.0, all_ops=False)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Tensor:
        image = self.pixels[index]
        return torch.stack([image, *(self.augment(image) for _ in range(self.count))]).float().div_(255)


def dense_badge(probabilities: Tensor, features: Tensor, budget: int, draw: torch.Generator) -> Tensor:
    """BADGE with every gradient written out, N x C D numbers."""
    errors = -probabilities
    errors[torch.arange(len(errors)), probabilities.argmax(1)] += 1
    gradients = (errors.unsqueeze(2) * features.unsqueeze(1)).flatten(1)
    chosen = [gradients.norm(dim=1).argmax()]
    nearest = torch.full((len(gradients),), torch.inf, device=gradients.device)
    for _ in range(budget - 1):
        nearest = torch.minimum(nearest, (gradients - gradients[chosen[-1]]).square().sum(1))
        nearest[chosen[-1]] = 0
        chosen.append(torch.multinomial(nearest.cpu(), 1, generator=draw)[0].to(gradients.device))
    return torch.stack(chosen)


def turns(calls: dict[str, Callable[[], object]], device: torch.device, rounds: int) -> dict[str, float]:
    """Return the median seconds of calls that take turns; the first turn of each does not count."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            times[name].append(runtime.seconds(call, device))
    return {name: statistics.median(taken[1:]) for name, taken in times.items()}


def row(part: str, times: dict[str, float], count: int, note: str) -> dict[str, Any]:
    """Return the row of two ways that took turns: ours, and the usual one."""
    ours, usual = times.values()
    each = {"seconds": ours, "usual_seconds": usual, "us_an_item": 1e6 * ours / count}
    return {"part": part, **each, "times_as_fast": usual / ours, "note": note}


def time_views(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Make the views of some images both ways."""
    pixels = torch.randint(0, 256, (options.images, 3, 32, 32), dtype=torch.uint8)
    there, draw = pixels.to(device), torch.Generator().manual_seed(1)
    workers = torch.get_num_threads()
    loader = DataLoader(OneByOne(pixels, options.views), 32, num_workers=workers, persistent_workers=True)
    calls: dict[str, Callable[[], object]] = {
        "batched": lambda: views(there, options.views, draw),
        "one by one": lambda: [batch.to(device) for batch in loader],
    }
    times = turns(calls, device, options.rounds)
    note = f"{options.views} views of {options.images} images; DataLoader with {workers} workers"
    return row("views", times, options.images * options.views, note)


def time_badge(options: argparse.Namespace, device: torch.device, width: int) -> dict[str, Any]:
    """Choose a twentieth of the pool both ways."""
    probabilities = torch.randn(options.pool, CLASSES, device=device).softmax(1)
    features = torch.rand(options.pool, width, device=device)
    budget, draw = options.pool // 20, torch.Generator().manual_seed(1)
    calls: dict[str, Callable[[], object]] = {
        "products": lambda: diverse_gradients(probabilities, features, budget, draw),
        "written out": lambda: dense_badge(probabilities, features, budget, draw),
    }
    memory = [4e-6 * options.pool * each for each in (CLASSES + width, CLASSES * width)]
    note = f"{budget} of {options.pool}, {width} features; {memory[0]:.1f} MB against {memory[1]:.1f} MB"
    return row("badge", turns(calls, device, options.rounds), budget, note)


def time_selection(options: argparse.Namespace, device: torch.device, model: Classifier) -> list[dict[str, Any]]:
    """Choose one in a hundred of a pool by HybridRepair, and time the parts."""
    draw, count = torch.Generator().manual_seed(1), options.whole or options.pool
    pool, train = (
        torch.randint(0, 256, (number, 3, 32, 32), dtype=torch.uint8, generator=draw).to(device)
        for number in (count, count // 3)
    )
    evidence = SelectionInputs(model, pool, train, 1, options.views)
    budget, truth = max(1, count // 100), torch.zeros(count, dtype=torch.long, device=device)
    parts: dict[str, Callable[[], object]] = {
        "pool and training images once": lambda: (evidence.embeddings, evidence.train_embeddings),
        "views": lambda: evidence.consistency,
        "regions": lambda: cluster_pool(evidence.features, budget, 1),
        "all of it, once more but for the passes": lambda: METHODS["hybrid"](evidence, Oracle(truth, budget), budget),
    }
    return [
        {"part": f"hybrid: {name}", "seconds": runtime.seconds(call, device), "note": f"{count} images"}
        for name, call in parts.items()
    ]


def time_safe_step(options: argparse.Namespace, device: torch.device, model: Classifier) -> dict[str, Any]:
    """Take steps of the safe recipe, views included, and only their forward and backward passes."""
    pixels = torch.randint(0, 256, (options.pool, 3, 32, 32), dtype=torch.uint8).to(device)
    labels = torch.arange(options.pool, device=device) % CLASSES
    replay, bought = Images(pixels, labels), Images(pixels[:20], labels[:20])
    prior, batch = torch.full((CLASSES,), 1 / CLASSES, device=device), max(2, options.images // 4)
    data = SafeData(replay, bought, pixels, torch.arange(options.pool, device=device), prior, crop=True, mirror=True)
    state = SafeState(model, data, SafeRecipe(), PseudoLabelling(prior, 0.99), 0.99, 1)
    loss = safe_loss(torch.zeros(CLASSES, device=device))
    ready = next(iter(SafeEpoch(state, 0, batch, 1)))
    optimizer, schedule = constant_sgd(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=0)
    weak = ready[0][batch:].contiguous()

    def train(batches: Stream) -> None:
        model.train()
        with torch.enable_grad():
            train_epoch(model, batches, loss, optimizer, schedule)

    def passes() -> None:
        state.teacher(weak)
        train([ready])

    def step() -> None:
        state.stopped = False  # on noise a class has no pseudo-labels, so that training would go on without any
        train(SafeEpoch(state, 0, batch, 1))

    calls: dict[str, Callable[[], object]] = {"step": step, "passes": passes}
    times = turns(calls, device, options.rounds)
    note = f"{batch} labelled images and {len(weak)} of the pool; the usual is forward and backward passes alone"
    return row("safe step", times, len(ready[0]), note)


def parser() -> argparse.ArgumentParser:
    """Return the parser of this benchmark's options."""
    found = machine.parser(__doc__ or "")
    found.add_argument("-m", "--model", choices=sorted(ARCHITECTURES), default="mobilenet")
    found.add_argument("--images", type=int, default=256, metavar="N", help="images to make views of (default: 256)")
    found.add_argument("--views", type=int, default=8, metavar="N", help="views of each (default: 8)")
    found.add_argument("--pool", type=int, default=2000, metavar="N", help="images to choose from (default: 2000)")
    found.add_argument("--whole", type=int, metavar="N", help="images of the whole selection (default: as --pool)")
    found.add_argument("--rounds", type=int, default=5, metavar="N", help="turns of each (default: 5)")
    return found


@torch.no_grad()
def main() -> None:
    """Print a table, and write it as CSV."""
    options = parser().parse_args()
    device = machine.prepared(options.device)
    model = Classifier(ARCHITECTURES[options.model](CLASSES), [0.5] * 3, [0.25] * 3)
    model = model.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    rows = [time_views(options, device), time_badge(options, device, model.network.fc.in_features)]
    rows += [*time_selection(options, device, model), time_safe_step(options, device, model)]
    frame = pd.DataFrame(rows)
    print(f"{machine.heading(device)}; {options.model}, {options.rounds} rounds")
    print(frame.to_string(index=False, float_format="%.3f", na_rep=""))
    whole = options.whole or options.pool
    images = f"noise: {options.images} for views, {options.pool} rows for BADGE, {whole} for a selection"
    machine.write(frame, options, device, images=images)


if __name__ == "__main__":
    main()
