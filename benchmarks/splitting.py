"""Split a network by ours and the published settings of both searches, and by random controls: what is kept and lost?

python benchmarks/splitting.py [-m simcnn_svhn_weak] [-d digits] [--weights FILE] [--seeds N ...] [--epochs N]

For each seed a network is trained, or read, and split once by each setting. `importance_accuracy` is the mean composed
accuracy where all modules keep the most important 0.1 to 0.9 of the kernels of one layer: how good an importance is
before any search. The other columns are those of modularize.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import base_networks
import machine
import pandas as pd
import torch
from torch import nn

from deeppatch.data.dataset import Data
from deeppatch.modular.analysis import Analysis, analyse
from deeppatch.modular.genetic_search import GeneticSearch
from deeppatch.modular.gradient_search import GradientSearch
from deeppatch.modular.measuring import measure_modules
from deeppatch.modular.splitting import search
from deeppatch.saving import load
from deeppatch.zoo.resolve import resolve

IMPORTANCES = ("pooled", "unpooled", "random")


def main() -> None:
    """Split the network of each seed by each setting, and print and write the table."""
    options = parser().parse_args()
    device = machine.prepared(options.device)
    print(machine.heading(device))
    rows: list[dict[str, Any]] = []
    for seed in options.seeds:
        data = base_networks.given(options, seed, device)
        model = network(options, data, seed).to(device)
        images = options.sensitivity_images
        analyses = {place: analyse(model, data, images=images, importance=place, seed=seed) for place in IMPORTANCES}
        for name, place, settings in variants(options):
            rows.append(row(name, seed, model, data, analyses[place], settings))
            print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    print(table.groupby("settings", sort=False).mean(numeric_only=True).drop(columns="seed").to_string())
    machine.write(table, options, device, images=base_networks.images_of(data, options.dataset))


def network(options: argparse.Namespace, data: Data, seed: int) -> nn.Module:
    """Return the network of a seed: read from --weights, or trained here."""
    if options.weights:
        found: nn.Module = load(options.weights, resolve(options.model).build(len(data.classes)))
        return found
    return base_networks.trained(options, data, seed)


def variants(options: argparse.Namespace) -> list[tuple[str, str, GradientSearch | GeneticSearch]]:
    """Return the name of each setting, the importance that it reads, and the settings of its search."""
    found: list[tuple[str, str, GradientSearch | GeneticSearch]] = []
    if options.epochs:
        gradient = GradientSearch(epochs=options.epochs)
        found += [
            ("grad, ours", "pooled", gradient),
            ("grad, published", "pooled", GradientSearch.published(epochs=options.epochs)),
            ("grad, importance before pooling", "unpooled", gradient),
            ("grad, random importance", "random", gradient),
            ("grad, random thresholds", "pooled", replace(gradient, start="random")),
        ]
    if options.generations:
        genetic = GeneticSearch(generations=options.generations)
        found += [
            ("ga, ours", "unpooled", genetic),
            ("ga, importance behind pooling", "pooled", genetic),
            ("ga, random importance", "random", genetic),
            ("ga, random first population", "unpooled", replace(genetic, start="random")),
        ]
    return found


def row(
    name: str, seed: int, model: nn.Module, data: Data, analysis: Analysis, settings: GradientSearch | GeneticSearch
) -> dict[str, Any]:
    """Return what one setting leaves."""
    start = time.monotonic()
    torch.manual_seed(seed)
    modules = search(analysis, data, settings, seed=seed)
    seconds = time.monotonic() - start
    found = measure_modules(model, modules, data)
    return {
        "settings": name,
        "seed": seed,
        "strong_accuracy": 100 * found.strong_accuracy,
        "composed_accuracy": 100 * found.composed_accuracy,
        "kernels_kept": 100 * found.mean_share,
        "dissimilarity": 100 * found.mean_dissimilarity,
        "importance_accuracy": 100 * analysis.sensitivity[:, :-1].mean().item(),
        "seconds": seconds,
    }


def parser() -> argparse.ArgumentParser:
    """Return the parser of this benchmark's options."""
    found = base_networks.parser(__doc__ or "")
    found.add_argument("--weights", type=Path, metavar="FILE", help="a network to split (default: one is trained)")
    found.add_argument("--sensitivity_images", type=int, default=1000, metavar="N")
    found.add_argument("--epochs", type=int, default=145, metavar="N", help="0: no gradient search (default: 145)")
    found.add_argument("--generations", type=int, default=30, metavar="N", help="0: no genetic search (default: 30)")
    return found


if __name__ == "__main__":
    main()
