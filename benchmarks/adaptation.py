"""Adapt at test time instead of repairing: what do methods of adaptation and fixed networks answer on five streams?

python benchmarks/adaptation.py --weights FILE [-m resnet32a] [-d cifar10] [-n all] [--severity 5]
    [--methods NAME ...] [--streams NAME ...] [--clean] [--networks NAME=FILE ...] [--switched PATCH ROUTER]
    [--per_corruption 1000] [--single 20] [-b 200] [--seeds 2021] [--reference source] [--device cpu|cuda]

Every method adapts the base to the stream, and all rows read the same images in the same order. Fixed networks stand
beside them: fine-tuned ones, with weights that correct left, and with --switched the base with its patch, always on
and switched by its router. The prior count of bn-prior is chosen on val, all other settings are the published ones.
Leaves a CSV file with a row for each seed, method and stream, and beside it, with -types at the end of its name, one
with a row for each type of degradation.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import machine
import pandas as pd
import torch
from torch import nn

from deeppatch.adapt.batch_statistics import BnPriorSettings, choose_prior_count
from deeppatch.adapt.measure import run_streams
from deeppatch.adapt.names import METHODS, STREAMS
from deeppatch.adapt.results import StreamResults, joined
from deeppatch.data.corruptions import Corruption, corruption
from deeppatch.data.dataset import Data, load_data
from deeppatch.data.streams import choose_images
from deeppatch.patching.patch_file import apply
from deeppatch.patching.switched import SwitchedModel
from deeppatch.progress import console_output
from deeppatch.saving import load
from deeppatch.zoo.classifier import Classifier
from deeppatch.zoo.entries import CLASSES
from deeppatch.zoo.loading import load_classifier


def main() -> None:
    """Run all seeds, and write two tables."""
    options = parser().parse_args()
    device = machine.prepared(options.device)
    data = load_data(options.dataset, options.data_dir, limit=options.limit)
    degrade = corruption(options.noise_type, severity=options.severity)
    classes = options.dataset if options.dataset in CLASSES else len(data.classes)
    base = load_classifier(options.model, classes, options.weights).to(device).eval()
    with console_output():
        found, counts = [], []
        for seed in options.seeds:
            results, count = one_seed(options, base, data, degrade, seed)
            found.append(results)
            counts.append(count)
    frame = joined(found, options.seeds).round(3)
    print(frame.to_string(index=False))
    images = f"{options.per_corruption} test images of {options.dataset} for each of {len(found[0].levels)} levels"
    images += f", {options.single} in the stream single" * ("single" in options.streams)
    note = {"note": f"prior counts of bn-prior, chosen on val: {', '.join(map(str, counts))}"} if counts[0] else {}
    machine.write(frame, options, device, images=images, **note)
    types = pd.concat([each.by_type().assign(seed=seed) for each, seed in zip(found, options.seeds, strict=True)])
    machine.write(types.round(3), machine.beside(options, "types"), device, images=images, **note)


def one_seed(
    options: argparse.Namespace, base: Classifier, data: Data, degrade: Corruption, seed: int
) -> tuple[StreamResults, int | None]:
    """Return the results of one seed, and the prior count of bn-prior where that is among the methods."""
    count = None
    if "bn-prior" in options.methods:
        chosen = data.val.take(choose_images(data.val, options.per_corruption, seed))
        count = choose_prior_count(base, chosen, degrade, batch_size=options.batch_size, seed=seed)
    return run_streams(
        base,
        data,
        degrade,
        methods=options.methods,
        streams=options.streams,
        networks=networks(options, base, data.example),
        settings={} if count is None else {"bn-prior": BnPriorSettings(count)},
        levels=range(0 if options.clean else 1, len(degrade) + 1),
        reference=options.reference,
        per_corruption=options.per_corruption,
        single=options.single,
        batch_size=options.batch_size,
        seed=seed,
    ), count


def networks(options: argparse.Namespace, base: Classifier, example: torch.Tensor) -> dict[str, nn.Module]:
    """Return the fixed networks by name."""
    found: dict[str, nn.Module] = {}
    for name, file in options.networks:
        found[name] = load(file, copy.deepcopy(base))
    if options.switched:
        patch, router = map(load, options.switched)
        device = next(base.parameters()).device
        always = copy.deepcopy(base)
        apply(always, patch, example.to(device))
        found["patched always on"] = always.eval()
        found["switched"] = SwitchedModel(base, patch, example.to(device), router.to(device))
    return found


def named_file(text: str) -> tuple[str, Path]:
    """Return name and file of NAME=FILE."""
    name, equals, file = text.partition("=")
    if not (name and equals and file):
        raise argparse.ArgumentTypeError(f"{text}: write NAME=FILE")
    return name, Path(file)


def parser() -> argparse.ArgumentParser:
    """Return the parser of this benchmark's options."""
    found = machine.parser(__doc__ or "")
    found.add_argument("--weights", type=Path, metavar="FILE", help="weights of the base (default: the published ones)")
    found.add_argument("-m", "--model", default="resnet32a", metavar="NAME")
    found.add_argument("-d", "--dataset", default="cifar10", metavar="NAME")
    found.add_argument("--data_dir", type=Path, default=Path("data"), metavar="FOLDER")
    found.add_argument("--limit", type=int, metavar="N", help="images of each part that are loaded (default: all)")
    found.add_argument("-n", "--noise_type", default="all", metavar="NAMES", help="degradations (default: the 15)")
    found.add_argument("--severity", default="5", metavar="LIST", type=severities, help="default: 5; none for blur")
    found.add_argument("--clean", action="store_true", help="streams have the clean images too, first")
    found.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME")
    found.add_argument("--streams", nargs="+", choices=STREAMS, default=list(STREAMS), metavar="NAME")
    found.add_argument("--networks", nargs="+", type=named_file, default=[], metavar="NAME=FILE")
    found.add_argument("--switched", nargs=2, type=Path, metavar=("PATCH", "ROUTER"))
    found.add_argument("--reference", default="source", metavar="NAME", help="row to compare with (default: source)")
    found.add_argument("--per_corruption", type=int, default=1000, metavar="N", help="images of each (default: 1000)")
    found.add_argument("--single", type=int, default=20, metavar="N", help="in the stream single (default: 20)")
    found.add_argument("-b", "--batch_size", type=int, default=200, metavar="N")
    found.add_argument("--seeds", type=int, nargs="+", default=[machine.SEED], metavar="N")
    return found


def severities(text: str) -> str | None:
    """Return severities as `corruption` takes them: None for degradations that have none."""
    return None if text == "none" else text


if __name__ == "__main__":
    main()
