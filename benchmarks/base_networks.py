"""What the benchmarks of modules share: their data, and the network that is trained from scratch before it is split."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import machine
import torch

from deeppatch.artifacts import Checkpoint
from deeppatch.data.dataset import Data, load_data
from deeppatch.data.splits import subset
from deeppatch.pretraining.classifier import train_classifier
from deeppatch.pretraining.normalisation import of_training_images
from deeppatch.pretraining.recipes import Recipe
from deeppatch.zoo.classifier import Classifier
from deeppatch.zoo.resolve import resolve


def parser(doc: str) -> argparse.ArgumentParser:
    """Return a parser that knows the options of data and training, as `machine.parser` knows those of the machine."""
    found = machine.parser(doc)
    found.add_argument("-m", "--model", default="simcnn_svhn_weak", metavar="NAME")
    found.add_argument("-d", "--dataset", default="digits", metavar="NAME")
    found.add_argument("--data_dir", type=Path, default=Path("data"), metavar="FOLDER")
    found.add_argument("--seeds", type=int, nargs="+", default=[2021, 2022, 2023], metavar="N")
    found.add_argument("--images", type=int, metavar="N", help="training images (default: all)")
    found.add_argument("--train_epochs", type=int, default=30, metavar="N", help="of each network (default: 30)")
    found.add_argument("--lr", type=float, default=0.02, metavar="X", help="of its training (default: 0.02)")
    found.add_argument("--batch_size", type=int, default=32, metavar="N", help="of its training (default: 32)")
    return found


def given(
    options: argparse.Namespace,
    seed: int,
    device: torch.device,
    *,
    dataset: str = "",
    images: int | None = None,
    all_images: bool = False,
) -> Data:
    """Return the data of a seed on a device: those of -d, with --images of training, unless others are named."""
    data = load_data(dataset or options.dataset, options.data_dir, seed=seed, val_share=0.2)
    count = None if all_images else images or options.images
    return (replace(data, train=subset(data.train, count, seed, data.name)) if count else data).to(device)


def recipe(options: argparse.Namespace) -> Recipe:
    """Return how the network is trained."""
    return Recipe(epochs=options.train_epochs, lr=options.lr, batch_size=options.batch_size)


def untrained(options: argparse.Namespace, data: Data, seed: int) -> Classifier:
    """Return the network of a seed before its training."""
    torch.manual_seed(seed)
    statistics = of_training_images(data.train)
    bare = resolve(options.model).build(len(data.classes))
    return Classifier(bare, statistics.mean, statistics.std, data.classes).to(data.val.labels.device)


def trained(options: argparse.Namespace, data: Data, seed: int, *, checkpoint: Checkpoint | None = None) -> Classifier:
    """Return the network of a seed, trained from scratch, or from where a checkpoint stands."""
    return train_classifier(untrained(options, data, seed), data, recipe(options), seed=seed, checkpoint=checkpoint)[0]


def images_of(data: Data, name: str) -> str:
    """Say how many images were read of a data set."""
    return f"{len(data.train)} train, {len(data.val)} val and {len(data.test)} test images of {name}"
