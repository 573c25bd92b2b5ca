"""Does a patch gain on degradations that it has not seen, if its statistics are estimated on unlabelled field images?

python benchmarks/field_statistics.py --weights FILE --patch FILE [-m resnet32a] [-d cifar10]
    [-n defocus_blur,fog,...] [--severity 5] [--sigma 6] [--field 500] [--images 2000] [-b 200] [--device cpu|cuda]

For each degradation 500 test images are degraded, and without their labels the patch gets their normalisation
statistics, frozen, as `correct -c statistics` does. Everything is measured on others of the test images, with the same
degradation and clean: the base, the patch always on, as trained and with these statistics, and both networks with the
statistics of each batch instead, so that an answer depends on its neighbours. Leaves a CSV file with a row for each
degradation and network; differences are to the patch as it was trained, with 95 % intervals over images.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import machine
import pandas as pd
import torch
from torch import Tensor, nn

from deeppatch import metrics
from deeppatch.adapt.methods import adapter
from deeppatch.data import views
from deeppatch.data.corruptions import Corruption, GaussianBlur, corruption
from deeppatch.data.dataset import load_data
from deeppatch.data.images import Images
from deeppatch.data.streams import choose_images
from deeppatch.patching.patch_file import Patch, apply
from deeppatch.patching.seen import apart
from deeppatch.patching.statistics import reestimate_statistics
from deeppatch.progress import console_output
from deeppatch.saving import load
from deeppatch.zoo.classifier import Classifier
from deeppatch.zoo.entries import CLASSES
from deeppatch.zoo.loading import load_classifier

TYPES = "gaussian_noise,defocus_blur,glass_blur,fog,contrast,jpeg_compression"
TRAINED = "patched always on"
Answer = Callable[[Tensor], Tensor]


def main() -> None:
    """Measure all degradations, and write the table."""
    options = parser().parse_args()
    if options.patch is None:
        raise SystemExit("give the patch of the base with --patch FILE")
    device = machine.prepared(options.device)
    data = load_data(options.dataset, options.data_dir, limit=options.limit)
    classes = options.dataset if options.dataset in CLASSES else len(data.classes)
    base = load_classifier(options.model, classes, options.weights).to(device).eval()
    field, others = apart(data.test, options.field, machine.SEED)
    test = others.take(choose_images(others, options.images, machine.SEED))
    with console_output():
        rows = [
            row
            for name, degrade, level in degradations(options)
            for row in measured(name, base, load(options.patch), (field, test), (degrade, level), options.batch_size)
        ]
    frame = pd.DataFrame(rows).round(2)
    print(frame.to_string(index=False))
    images = f"{len(test)} test images of {options.dataset}, statistics of {len(field)} others"
    machine.write(frame, options, device, images=images)


def degradations(options: argparse.Namespace) -> Iterator[tuple[str, Corruption, int]]:
    """Yield each degradation with the level to use: blur of --sigma, and the types of -n at --severity."""
    yield f"blur s={options.sigma:g}", GaussianBlur([options.sigma]), 1
    types = corruption(options.noise_type, severity=str(options.severity), seed=machine.SEED)
    for level, name in enumerate(types.level_names, start=1):
        yield name, types, level


@torch.no_grad()
def measured(
    name: str,
    base: Classifier,
    patch: Patch,
    images: tuple[Images, Images],
    degraded: tuple[Corruption, int],
    batch_size: int,
) -> list[dict[str, Any]]:
    """Return a row for each network on one degradation; `images` are those from the field, and those to measure on."""
    field, test = images
    device = next(base.parameters()).device
    seen = torch.cat([pixels for pixels, _labels in view_of(field, degraded, batch_size, device)])
    again = reestimate_statistics(base, patch, seen)
    patched = {TRAINED: with_patch(base, patch, test), "statistics estimated again": with_patch(base, again, test)}
    answers: dict[str, Answer] = {
        "pretrained": base,
        **patched,
        "pretrained, batch statistics": adapter("bn-1", base).predict,
        "patched, batch statistics": adapter("bn-1", patched[TRAINED]).predict,
    }
    shown = {"degraded": degraded, "clean": None}
    right = {kind: correct(answers, view_of(test, each, batch_size, device), device) for kind, each in shown.items()}
    rows = []
    for network in answers:
        row: dict[str, Any] = {"degradation": name, "network": network}
        for kind, found in right.items():
            row[f"{kind}"] = 100 * found[network].double().mean().item()
            gained = metrics.paired_difference(found[network], found[TRAINED]).scaled(100)
            same = network == TRAINED
            row[f"{kind}, change"] = "" if same else f"{gained.estimate:+.2f} [{gained.low:+.2f}, {gained.high:+.2f}]"
        rows.append({**row, "depends on its batch": "batch statistics" in network})
    return rows


def view_of(
    images: Images, degraded: tuple[Corruption, int] | None, batch_size: int, device: torch.device
) -> views.View:
    """Return images in batches, clean or at one level of a degradation; shuffled, so that a batch has all classes."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(machine.SEED))
    shuffled = images.take(order).to(device)
    if degraded is None:
        return views.clean(shuffled, batch_size)
    degrade, level = degraded
    return views.levels_view(shuffled, degrade, [level], batch_size)


def with_patch(base: Classifier, patch: Patch, images: Images) -> nn.Module:
    """Return a copy of the base with a patch always on."""
    patched = copy.deepcopy(base)
    apply(patched, patch, views.to_float(images.pixels[:2]).to(next(base.parameters()).device))
    return patched.eval()


def correct(answers: dict[str, Answer], view: views.View, device: torch.device) -> dict[str, Tensor]:
    """Return which images of a view each network classifies correctly, bool (N,)."""
    found: dict[str, list[Tensor]] = {name: [] for name in answers}
    for pixels, labels in view:
        for name, answer in answers.items():
            found[name].append((answer(pixels.to(device)).argmax(1) == labels.to(device)).cpu())
    return {name: torch.cat(parts) for name, parts in found.items()}


def parser() -> argparse.ArgumentParser:
    """Return the parser of this benchmark's options."""
    found = machine.parser(__doc__ or "")
    found.add_argument("--weights", type=Path, metavar="FILE", help="weights of the base (default: the published ones)")
    found.add_argument("--patch", type=Path, metavar="FILE", help="a patch of the base (needed)")
    found.add_argument("-m", "--model", default="resnet32a", metavar="NAME")
    found.add_argument("-d", "--dataset", default="cifar10", metavar="NAME")
    found.add_argument("--data_dir", type=Path, default=Path("data"), metavar="FOLDER")
    found.add_argument("--limit", type=int, metavar="N", help="images of each part that are loaded (default: all)")
    found.add_argument("-n", "--noise_type", default=TYPES, metavar="NAMES", help=f"types (default: {TYPES})")
    found.add_argument("--severity", type=int, default=5, metavar="N", help="of these types (default: 5)")
    found.add_argument("--sigma", type=float, default=6, metavar="S", help="of the blur, in pixels (default: 6)")
    found.add_argument("--field", type=int, default=500, metavar="N", help="unlabelled images (default: 500)")
    found.add_argument("--images", type=int, default=2000, metavar="N", help="others to measure on (default: 2000)")
    found.add_argument("-b", "--batch_size", type=int, default=200, metavar="N")
    return found


if __name__ == "__main__":
    main()
