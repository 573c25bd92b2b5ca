"""Split networks that were trained plainly and for modularity: how many kernels are kept, and how accurate are they?

python benchmarks/modular_training.py [-m NAME] [-d digits] [--images N] [--seeds N ...] [--weights A B C ...]

For each seed and each triple of weights (cohesion, coupling, compactness; 0 0 0 is plain training) a network is
trained, split by a gradient search that begins selectively and scales the modules' scores, the plain one by the usual
search, too, and measured; with --tune_epochs once more after its kernels were trained through the modules of the
selective search. The modules correct the weak models of --targets, whose precision, recall and F1 of that class are
means over these. On CIFAR-10:

python benchmarks/modular_training.py -m simcnn_x0_25 -d cifar10 --images 16000 --train_epochs 80 --batch_size 64
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import base_networks
import machine
import pandas as pd
import torch

from deeppatch.artifacts import Checkpoint
from deeppatch.data.dataset import Data
from deeppatch.modular.gradient_search import GradientSearch
from deeppatch.modular.joining import BEFORE, compare_joins
from deeppatch.modular.measuring import measure_modules
from deeppatch.modular.modularity_loss import (
    BEGIN,
    WHOLE,
    ModularityWeights,
    measure_modularity,
    train_for_modularity,
)
from deeppatch.modular.modules import Modules
from deeppatch.modular.names import MODULARITY, TUNING_LR
from deeppatch.modular.splitting import split_into_modules
from deeppatch.modular.tuning import tune_modules
from deeppatch.storage import sha256
from deeppatch.zoo.classifier import Classifier

PLAIN = (0.0, 0.0, 0.0)
SELECTIVE = "selective"
MEASURES = ("precision", "recall", "f1")


def main() -> None:
    """Train and split a network for each seed and triple of weights, and print and write the table."""
    options = parser().parse_args()
    device = machine.prepared(options.device)
    print(machine.heading(device))
    triples = list(zip(*[iter(options.weights)] * 3, strict=True))
    rows: list[dict[str, Any]] = []
    for seed in options.seeds:
        data = base_networks.given(options, seed, device)
        weak = weak_models(options, seed, device)
        for weights in [PLAIN, *triples]:
            trained = network(options, data, seed, weights)
            for search in searches(options) if weights == PLAIN else [SELECTIVE]:
                modules = split(options, data, seed, weights, trained, search)
                found = {search: (trained, modules)}
                if options.tune_epochs and search == SELECTIVE:
                    found[f"{search}, tuned"] = tuned(options, data, seed, weights, trained, modules)
                for name, (strong, each) in found.items():
                    about = {"training": said(weights), "search": name, "seed": seed}
                    rows.append({**about, **measured(strong, each, data, weak)})
                    print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    print(table.groupby(["training", "search"], sort=False).mean(numeric_only=True).drop(columns="seed").to_string())
    machine.write(table, options, device, images=base_networks.images_of(data, options.dataset))


def state_of(options: argparse.Namespace, name: str, **settings: Any) -> Checkpoint | None:
    """Return the checkpoint of a training or a search in the folder --states, if that is given, to go on from."""
    if options.states is None:
        return None
    read = ("model", "dataset", "images", "train_epochs", "lr", "batch_size")
    options.states.mkdir(parents=True, exist_ok=True)
    same = {key: getattr(options, key) for key in read}
    return Checkpoint(options.states / f"{name.replace(' ', '-')}.state", {**same, **settings}, resume=True)


def weak_models(options: argparse.Namespace, seed: int, device: torch.device) -> dict[int, tuple[Classifier, Data]]:
    """Return the weak model of each of the classes to correct, and its data, in which the class is the last."""
    found = {}
    for target in options.targets:
        name = f"{options.dataset.removesuffix('_5')}-mix:{target}"
        data = base_networks.given(options, seed, device, dataset=name, all_images=True)
        weak = argparse.Namespace(**{**vars(options), "train_epochs": options.weak_epochs})
        checkpoint = state_of(weak, f"weak-{target}-seed{seed}")
        found[target] = base_networks.trained(weak, data, seed, checkpoint=checkpoint), data
    return found


def corrected(
    strong: torch.nn.Module, modules: Modules, data: Data, weak: dict[int, tuple[Classifier, Data]]
) -> dict[str, float]:
    """Return precision, recall and F1 in percent of the weak models' classes, alone and with the modules."""
    rows = []
    for target, (model, own) in weak.items():
        join = "direct" if modules.has_heads else "min_max"
        found = compare_joins(model, modules, strong, target, data, own, joins=[join]).metrics
        pairs = [(when, key, name) for when, key in (("weak", BEFORE), ("patched", join)) for name in MEASURES]
        rows.append({f"{when}_{name}": 100 * found[key][name] for when, key, name in pairs})
    return pd.DataFrame(rows).mean().to_dict()


def network(options: argparse.Namespace, data: Data, seed: int, weights: tuple[float, float, float]) -> torch.nn.Module:
    """Return the network of a seed, trained with these weights."""
    model, recipe = base_networks.untrained(options, data, seed), base_networks.recipe(options)
    checkpoint = state_of(options, f"{said(weights)}-seed{seed}", weights=weights, rise=(BEGIN, WHOLE))
    terms = ModularityWeights(*weights)
    return train_for_modularity(model, data, recipe, weights=terms, seed=seed, checkpoint=checkpoint)[0]


def said(weights: tuple[float, float, float]) -> str:
    """Return what the table calls a training with these weights."""
    return "plain" if weights == PLAIN else "modular " + " ".join(f"{each:g}" for each in weights)


def searches(options: argparse.Namespace) -> dict[str, GradientSearch]:
    """Return the searches that each network is split by."""
    same = {
        "epochs": options.epochs,
        "images": options.search_images,
        "lr": options.search_lr,
        "alpha": options.alpha,
        "max_drop": options.max_drop,
    }
    return {
        "usual": GradientSearch(head=not options.no_head, **same),
        SELECTIVE: GradientSearch(head=False, scaled=True, start="selective", shared=options.shared, **same),
    }


def split(
    options: argparse.Namespace,
    data: Data,
    seed: int,
    weights: tuple[float, float, float],
    trained: torch.nn.Module,
    search: str,
) -> Modules:
    """Split a network that was trained with these weights."""
    settings = searches(options)[search]
    name = f"{said(weights)}-{search}-seed{seed}"
    checkpoint = state_of(options, name, rise=(BEGIN, WHOLE), **asdict(settings))
    return split_into_modules(trained, data, method=settings, sensitivity_images=100, seed=seed, checkpoint=checkpoint)


def tuned(
    options: argparse.Namespace,
    data: Data,
    seed: int,
    weights: tuple[float, float, float],
    trained: torch.nn.Module,
    modules: Modules,
) -> tuple[torch.nn.Module, Modules]:
    """Return the network and its modules after its kernels were trained through these."""
    name, settings = f"{said(weights)}-tuned-seed{seed}", {"epochs": options.tune_epochs, "lr": options.tune_lr}
    checkpoint = state_of(options, name, base=modules.base, kept=sha256(modules.to_bytes()), **settings)
    return tune_modules(trained, modules, data, seed=seed, checkpoint=checkpoint, **settings)[:2]


def measured(
    trained: torch.nn.Module, modules: Modules, data: Data, weak: dict[int, tuple[Classifier, Data]]
) -> dict[str, float]:
    """Return what is measured of a network and its modules."""
    found = measure_modules(trained, modules, data)
    overlap = 1 - found.dissimilarity[~torch.eye(len(data.classes), dtype=torch.bool)]
    return {
        "strong_accuracy": 100 * found.strong_accuracy,
        "composed_accuracy": 100 * found.composed_accuracy,
        "kernels_kept": 100 * found.mean_share,
        "pairwise_overlap": 100 * overlap.mean().item(),
        "multiply_adds": found.multiply_adds_percent,
        **measure_modularity(trained, data.val),
        **corrected(trained, modules, data, weak),
    }


def parser() -> argparse.ArgumentParser:
    """Return the parser of this benchmark's options."""
    found = base_networks.parser(__doc__ or "")
    found.add_argument("--weights", type=float, nargs="+", default=MODULARITY, metavar="X", help="triples of weights")
    found.add_argument("--search_images", type=int, metavar="N", help="of the search (default: all of these)")
    found.add_argument("--epochs", type=int, default=60, metavar="N", help="of the search (default: 60)")
    found.add_argument("--search_lr", type=float, default=0.001, metavar="X", help="of the search (default: 0.001)")
    found.add_argument("--alpha", type=float, default=0.5, metavar="A", help="modularize's (default: 0.5)")
    found.add_argument("--shared", type=float, default=0.0, metavar="B", help="modularize's, of the selective search")
    found.add_argument("--max_drop", type=float, default=1.0, metavar="POINTS", help="modularize's (default: 1)")
    found.add_argument("--no_head", action="store_true", help="modularize's, of the usual search")
    found.add_argument("--tune_epochs", type=int, default=0, metavar="N", help="modularize's (default: 0)")
    found.add_argument("--tune_lr", type=float, default=TUNING_LR, metavar="X", help="modularize's")
    found.add_argument(
        "--targets", type=int, nargs="*", default=[0, 1, 2], metavar="N", help="classes of weak models (default: 0 1 2)"
    )
    found.add_argument("--weak_epochs", type=int, default=5, metavar="N", help="of weak models (default: 5)")
    found.add_argument("--states", type=Path, metavar="FOLDER", help="keep trainings here, and go on from these")
    return found


if __name__ == "__main__":
    main()
