r"""Reuse modules of several models: a more accurate classifier, and one for new classes, against training from scratch.

python benchmarks/reuse.py [-m NAME] [-d digits] [--halves NAME NAME] [--seeds N ...] [--models N] [--images N]

Two parts for each seed. `better`: base models are trained on Dirichlet samples of the classes of -d, one seed each, and
split; the classifier has the module of highest F1 on val of each class. `new task`: a model for the classes of each of
`--halves` is trained and split; their modules make a classifier of all classes, without training, and a network is
trained from scratch for all of them. Rows beside the classifier: the best base model, their mean, all of them together.
On CIFAR-10, as the table in RESULTS has it:

python benchmarks/reuse.py -m simcnn_x0_125 -d cifar10 --halves cifar10:0-4 cifar10:5-9 --images 8000 --epochs 15 \
    --train_epochs 15
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import machine
import pandas as pd
import torch
from torch import nn

from deeppatch.data.dataset import Data, load_data
from deeppatch.data.dirichlet import dirichlet_subset
from deeppatch.data.splits import subset
from deeppatch.modular.assembling import SplitModel, assemble
from deeppatch.modular.assembly_controls import compare_assembled
from deeppatch.modular.gradient_search import GradientSearch
from deeppatch.modular.splitting import split_into_modules
from deeppatch.pretraining.classifier import train_classifier
from deeppatch.pretraining.normalisation import of_training_images
from deeppatch.pretraining.recipes import Recipe
from deeppatch.zoo.classifier import Classifier
from deeppatch.zoo.resolve import resolve

BETTER, NEW_TASK, SCRATCH = "better", "new task", "trained from scratch"


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
    data = given(options, options.dataset, seed, device, options.images)
    models = []
    for number in range(options.models):
        own = replace(data, train=dirichlet_subset(data.train, 1000 * seed + number, alpha=options.alpha))
        print(f"base model {number}: images of each class {torch.bincount(own.train.labels).tolist()}", flush=True)
        models.append(split(options, own, seed + number, f"base {number}"))
    return compared(models, data, {})


def new_task(options: argparse.Namespace, seed: int, device: torch.device) -> pd.DataFrame:
    """Return the table of a classifier of modules of models for either half of its classes."""
    images = options.images and options.images // len(options.halves)
    models = [split(options, given(options, name, seed, device, images), seed, name) for name in options.halves]
    data = given(options, "+".join(options.halves), seed, device, options.images)
    return compared(models, data, {SCRATCH: trained(options, data, seed)})


def given(options: argparse.Namespace, name: str, seed: int, device: torch.device, images: int | None) -> Data:
    """Return data of which `images` training images are read."""
    data = load_data(name, options.data_dir, seed=seed, val_share=0.2)
    if images:
        data = replace(data, train=subset(data.train, images, seed, data.name))
    return data.to(device)


def trained(options: argparse.Namespace, data: Data, seed: int) -> nn.Module:
    """Return a network that is trained from scratch."""
    torch.manual_seed(seed)
    statistics = of_training_images(data.train)
    bare = resolve(options.model).build(len(data.classes))
    model = Classifier(bare, statistics.mean, statistics.std, data.classes).to(data.val.labels.device)
    recipe = Recipe(epochs=options.train_epochs, lr=options.lr, batch_size=options.batch_size)
    return train_classifier(model, data, recipe, seed=seed)[0]


def split(options: argparse.Namespace, data: Data, seed: int, name: str) -> SplitModel:
    """Return a model that is trained from scratch and split."""
    model = trained(options, data, seed)
    settings = GradientSearch(epochs=options.epochs)
    modules = split_into_modules(model, data, method=settings, sensitivity_images=100, seed=seed)
    return SplitModel(model, modules, data.classes, name, network=options.model)


def compared(models: list[SplitModel], data: Data, others: dict[str, nn.Module]) -> pd.DataFrame:
    """Assemble a classifier, print its modules, and return it beside its controls, with kernels kept and F1."""
    assembled = assemble(models, data)
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
    found = machine.parser(__doc__ or "")
    found.add_argument("-m", "--model", default="simcnn_svhn_weak", metavar="NAME")
    found.add_argument("-d", "--dataset", default="digits", metavar="NAME")
    found.add_argument("--halves", nargs="+", default=["digits:0-4", "digits:5-9"], metavar="NAME")
    found.add_argument("--parts", nargs="+", choices=[BETTER, NEW_TASK], default=[BETTER, NEW_TASK])
    found.add_argument("--data_dir", type=Path, default=Path("data"))
    found.add_argument("--seeds", type=int, nargs="+", default=[2021, 2022, 2023], metavar="N")
    found.add_argument("--models", type=int, default=3, metavar="N", help="base models (default: 3; published: 10)")
    found.add_argument("--alpha", type=float, default=0.5, metavar="A", help="of the Dirichlet samples (default: 0.5)")
    found.add_argument("--images", type=int, metavar="N", help="training images (default: all)")
    found.add_argument("--epochs", type=int, default=60, metavar="N", help="of the search (default: 60)")
    found.add_argument("--train_epochs", type=int, default=30, metavar="N", help="of each network (default: 30)")
    found.add_argument("--lr", type=float, default=0.02, metavar="X")
    found.add_argument("--batch_size", type=int, default=32, metavar="N")
    return found


if __name__ == "__main__":
    main()
