r"""Reuse modules of several models: a more accurate classifier, and one for new classes, against training from scratch.

python benchmarks/reuse.py [-m NAME] [-d digits] [--halves NAME NAME] [--seeds N ...] [--models N] [--images N]

Two parts for each seed. `better`: base models are trained on Dirichlet samples of the classes of -d, one seed each, and
split; the classifier has the module of highest F1 on val of each class. `new task`: a model for the classes of each of
`--halves` is trained and split; their modules make a classifier of all classes, without training, and a network is
trained from scratch for all of them. Rows beside the classifier: the best base model, their mean, all of them together,
and the classifier whose modules' scores are on no common scale, as published.
On CIFAR-10:

python benchmarks/reuse.py -m simcnn_x0_125 -d cifar10 --halves cifar10:0-4 cifar10:5-9 --images 8000 --epochs 15 \
    --train_epochs 15
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import base_networks
import machine
import pandas as pd
import torch
from torch import nn

from deeppatch.data.dataset import Data
from deeppatch.data.dirichlet import dirichlet_subset
from deeppatch.modular.assembling import SplitModel, assemble
from deeppatch.modular.assembly_controls import compare_assembled
from deeppatch.modular.gradient_search import GradientSearch
from deeppatch.modular.splitting import split_into_modules

BETTER, NEW_TASK = "better", "new task"
SCRATCH, UNCALIBRATED = "trained from scratch", "assembled, scores as published"


def main() -> None:
    """Run both parts for each seed, and print and write the table."""
    options = parser().parse_args()
    device = machine.prepared(options.device)
    print(machine.heading(device))
    frames = []
    for seed in options.seeds:
        for part, measured in ((BETTER, better), (NEW_TASK, new_task)):
            if part in options.parts:
                frames.append(measured(options, seed, device).assign(part=part, seed=seed))
                print(frames[-1].to_string(index=False, float_format="%.2f"), flush=True)
    table = pd.concat(frames, ignore_index=True)
    table = table[["part", "seed", *(name for name in table.columns if name not in ("part", "seed"))]]
    print(table.groupby(["part", "network"], sort=False).mean(numeric_only=True).drop(columns="seed").to_string())
    count = f"{options.images} training images" if options.images else "all training images"
    machine.write(table, options, device, images=f"{count} of {options.dataset}, all test images")


def better(options: argparse.Namespace, seed: int, device: torch.device) -> pd.DataFrame:
    """Return the table of a classifier of modules of models that were trained on Dirichlet samples."""
    data = base_networks.given(options, seed, device)
    models = []
    for number in range(options.models):
        own = replace(data, train=dirichlet_subset(data.train, 1000 * seed + number, alpha=options.alpha))
        print(f"base model {number}: images of each class {torch.bincount(own.train.labels).tolist()}", flush=True)
        models.append(split(options, own, seed + number, f"base {number}"))
    return compared(models, data, {})


def new_task(options: argparse.Namespace, seed: int, device: torch.device) -> pd.DataFrame:
    """Return the table of a classifier of modules of models for either half of its classes."""
    images = options.images and options.images // len(options.halves)
    halves = {name: base_networks.given(options, seed, device, dataset=name, images=images) for name in options.halves}
    models = [split(options, half, seed, name) for name, half in halves.items()]
    data = base_networks.given(options, seed, device, dataset="+".join(options.halves))
    return compared(models, data, {SCRATCH: base_networks.trained(options, data, seed)})


def split(options: argparse.Namespace, data: Data, seed: int, name: str) -> SplitModel:
    """Return a model that is trained from scratch and split."""
    model = base_networks.trained(options, data, seed)
    settings = GradientSearch(epochs=options.epochs)
    modules = split_into_modules(model, data, method=settings, sensitivity_images=100, seed=seed)
    return SplitModel(model, modules, data.classes, name, network=options.model)


def compared(models: list[SplitModel], data: Data, others: dict[str, nn.Module]) -> pd.DataFrame:
    """Assemble a classifier, print its modules, and return it beside its controls, with kernels kept and F1."""
    assembled = assemble(models, data)
    others = {**others, UNCALIBRATED: assemble(models, data, calibrate=False)}
    assert assembled.table is not None
    print(assembled.table.to_string(index=False, float_format="%.1f"), flush=True)
    chosen = assembled.table[assembled.table["chosen"]]
    table = compare_assembled(assembled, models, data, others)
    for name in ("f1", "kernels_kept"):
        table[name] = chosen[name].mean()
        table.loc[1:, name] = float("nan")  # the first row is the assembled classifier
    return table


def parser() -> argparse.ArgumentParser:
    """Return the parser of this benchmark's options."""
    found = base_networks.parser(__doc__ or "")
    found.add_argument("--halves", nargs="+", default=["digits:0-4", "digits:5-9"], metavar="NAME")
    found.add_argument("--parts", nargs="+", choices=[BETTER, NEW_TASK], default=[BETTER, NEW_TASK])
    found.add_argument("--models", type=int, default=3, metavar="N", help="base models (default: 3; published: 10)")
    found.add_argument("--alpha", type=float, default=0.5, metavar="A", help="of the Dirichlet samples (default: 0.5)")
    found.add_argument("--epochs", type=int, default=60, metavar="N", help="of the search (default: 60)")
    return found


if __name__ == "__main__":
    main()
