"""Compare rankings: how far they agree with the exact one, and how well the network is repaired with each.

python benchmarks/rankings.py --weights FILE [-m resnet20a] [-d cifar10] [--limit 3000] [--output_dir DIR]

Rankings, tau by layer and what is repaired so far lie under --output_dir; a ranking that is there already is not made
again. The whole table is written to --output. Three random rankings, and the rear of the exact one, say whether
ranking matters.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine
import pandas as pd
import torch
from scipy.stats import kendalltau

from deeppatch import runtime
from deeppatch.data import sources, views
from deeppatch.data.corruptions import SIGMAS, GaussianBlur
from deeppatch.data.dataset import Data
from deeppatch.data.splits import split
from deeppatch.localization.ranking import Ranking, random_ranking
from deeppatch.localization.scoring import rank_filters
from deeppatch.patching.training import train_patch
from deeppatch.training import predict
from deeppatch.zoo import weights
from deeppatch.zoo.architectures import ARCHITECTURES
from deeppatch.zoo.classifier import Classifier

Keep = Callable[[str, pd.DataFrame], None]
SEED = machine.SEED

# name of a ranking, how it is made, the exact one that it stands for
RANKINGS: dict[str, tuple[dict[str, Any], str]] = {
    "perfloss": ({"method": "perfloss"}, "perfloss"),
    "perfloss, amp": ({"method": "perfloss", "amp": True}, "perfloss"),
    "perfloss, eliminate 0.1": ({"method": "perfloss", "eliminate": 0.1}, "perfloss"),
    "perfloss, eliminate 0.01": ({"method": "perfloss", "eliminate": 0.01}, "perfloss"),
    "taylor": ({"method": "taylor"}, "perfloss"),
    "taylor, refine 8": ({"method": "taylor", "refine": 8}, "perfloss"),
    "featswap": ({"method": "featswap"}, "featswap"),
    "featswap, eliminate 0.1": ({"method": "featswap", "eliminate": 0.1}, "featswap"),
    "activation": ({"method": "activation"}, "featswap"),
    "activation, refine 8": ({"method": "activation", "refine": 8}, "featswap"),
}
SEEDS = (1, 2, 3)


def load_data(options: argparse.Namespace, limit: int, device: torch.device) -> Data:
    """Return the data, with at most `limit` images of every part."""
    source = sources.load(options.dataset, options.data_dir, SEED)
    parts = split(source, SEED, limit)
    return Data(parts.train, parts.val, parts.test, source.classes, source.name).to(device)


def load_model(options: argparse.Namespace, classes: int, device: torch.device) -> Classifier:
    """Return the classifier that pretrain left."""
    state = weights.read(options.weights)
    mean, std = (state.pop(f"normalize.{key}").flatten().tolist() for key in ("mean", "std"))
    network = ARCHITECTURES[options.model](classes)
    weights.load_network(network, {k.removeprefix("network."): v for k, v in state.items()}, options.weights)
    return Classifier(network, mean, std).to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]


def rank(folder: Path, model: Classifier, data: Data, blur: GaussianBlur) -> dict[str, dict[str, Any]]:
    """Make every ranking, or read it where it is, and return its content."""
    contents = {}
    for name, (settings, _) in RANKINGS.items():
        path = folder / f"{name.replace(', ', '-').replace(' ', '')}.json"
        if not path.exists():
            start = time.perf_counter()
            found = rank_filters(model, data, blur, seed=SEED, **settings)  # its scores have left the device
            facts = {**found.facts, "seconds": time.perf_counter() - start}
            path.write_text(json.dumps({**found.to_json(), **facts}))
        contents[name] = json.loads(path.read_text())
    widths = {name: len(layer["order"]) for name, layer in contents["perfloss"]["layers"].items()}
    return contents | {f"random, seed {seed}": random_ranking(widths, seed).to_json() for seed in SEEDS}


def taus(contents: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """Return Kendall's tau of each layer, one a row, against the exact ranking, a column for each ranking."""
    rankings = {name: Ranking.from_json(content) for name, content in contents.items()}
    exact = {name: rankings[_exact(name)] for name in rankings}
    return pd.DataFrame({
        name: {layer: _tau(order, exact[name].order[layer]) for layer, order in ranking.order.items()}
        for name, ranking in rankings.items()
    }).rename_axis("layer").reset_index()  # fmt: skip


def agreement(contents: dict[str, dict[str, Any]], layers: pd.DataFrame, ratio: float) -> pd.DataFrame:
    """Return how far rankings agree with the exact one: tau over `layers`, what is chosen, passes spared, and time."""
    rows = []
    for name, content in contents.items():
        chosen, exact = (Ranking.from_json(each).choose(ratio) for each in (content, contents[_exact(name)]))
        common = sum(len(set(channels) & set(chosen[layer])) for layer, channels in exact.items())
        rows.append({
            "ranking": name, "median_tau": layers[name].median(), "least_tau": layers[name].min(),
            "overlap_percent": 100 * common / sum(map(len, exact.values())), "passes_spared": _spared(content),
            "seconds": content.get("seconds"),
        })  # fmt: skip
    return pd.DataFrame(rows)


def _exact(name: str) -> str:
    return RANKINGS[name][1] if name in RANKINGS else "perfloss"


def _tau(order: list[int], other: list[int]) -> float:
    ranks = [sorted(range(len(row)), key=row.__getitem__) for row in (order, other)]
    return float(kendalltau(*ranks).statistic)


def _spared(content: dict[str, Any]) -> float | None:
    return content["all_image_passes"] / content["image_passes"] if "image_passes" in content else None


def repair(
    options: argparse.Namespace,
    model: Classifier,
    data: Data,
    blur: GaussianBlur,
    contents: dict[str, dict[str, Any]],
    keep: Keep,
) -> pd.DataFrame:
    """Patch with each ranking at each ratio, and return clean and blurred accuracy on test in percent."""
    rows = []
    for ratio in options.ratios:
        for name, side in [*((name, "front") for name in contents), ("perfloss", "rear")]:
            channels = Ranking.from_json(contents[name]).choose(ratio, side)
            patch = train_patch(model, data, blur, channels, epochs=options.crt_epoch, seed=SEED)
            accuracies = measure(patch.apply(model), data, blur)
            rows.append({"ranking": f"{name}, {side}", "ratio": ratio, **accuracies})
            keep("repaired", pd.DataFrame(rows))
    return pd.DataFrame(rows)


def measure(model: torch.nn.Module, data: Data, blur: GaussianBlur) -> dict[str, float]:
    """Return accuracy in percent on test, clean and on the mean over levels."""
    view = views.append(data.test, blur, 256)
    correct = (predict(model, view) == view.labels).view(-1, len(data.test)).double().mean(1)
    return {"clean": 100 * correct[0].item(), "blurred": 100 * correct[1:].mean().item()}


def joined(agreements: pd.DataFrame, repaired: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each ranking and side: how the ranking agrees, and blurred accuracy at each ratio."""
    accuracies = repaired.pivot(index="ranking", columns="ratio", values="blurred").add_prefix("blurred at ratio ")
    named = agreements.assign(ranking=agreements["ranking"] + ", front")
    order = dict.fromkeys([*named["ranking"], *repaired["ranking"]])
    return named.set_index("ranking").reindex(list(order)).join(accuracies).reset_index()


def parser() -> argparse.ArgumentParser:
    """Return the parser of this benchmark's options."""
    found = machine.parser(__doc__ or "")
    found.add_argument("-m", "--model", default="resnet20a")
    found.add_argument("-d", "--dataset", default="cifar10")
    found.add_argument("--weights", type=Path, required=True, help="what pretrain left: weights.safetensors")
    found.add_argument(
        "--limit", type=int, default=3000, help="images of every split to repair with and to test on (default: 3000)"
    )
    found.add_argument("--rank_limit", type=int, default=300, help="val images to rank on (default: 300)")
    found.add_argument("--crt_epoch", type=int, default=3, help="epochs of a correction (default: 3)")
    found.add_argument(
        "--bfloat16", action="store_true", help="rank in bfloat16 with --amp even where the processor has none"
    )
    found.add_argument("--ratios", type=float, nargs="+", default=[0.1, 0.25, 0.5])
    found.add_argument("--data_dir", type=Path, default=Path("data"))
    found.add_argument("--output_dir", type=Path, default=Path("output/rankings"))
    return found


def main() -> None:
    """Print how rankings agree, and what is repaired with each; write both as one CSV."""
    options = parser().parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    device = machine.prepared(options.device)
    data = load_data(options, options.limit, device)
    model = load_model(options, len(data.classes), device)
    blur = GaussianBlur(SIGMAS)
    ranked_on = load_data(options, options.rank_limit, device)
    with runtime.assume_bfloat16() if options.bfloat16 else contextlib.nullcontext():
        contents = rank(options.output_dir, model, ranked_on, blur)

    def keep(name: str, frame: pd.DataFrame) -> None:
        frame.to_csv(options.output_dir / f"{name}.csv", index=False)

    layers = taus(contents)
    keep("agreement-layers", layers)
    found = agreement(contents, layers, 0.25)
    print(found.to_string(index=False, float_format="%.3g"))
    repaired = repair(options, model, data, blur, contents, keep)
    table = joined(found, repaired)
    print(table.to_string(index=False, float_format="%.2f"))
    images = f"{options.dataset}: ranked on {options.rank_limit} val, repaired and tested on {options.limit} images"
    machine.write(table, options, device, images=images)


if __name__ == "__main__":
    main()
