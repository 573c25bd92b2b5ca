"""Compare rankings: how far they agree with the exact one, and how well the network is repaired with each.

python benchmarks/rankings.py --weights FILE [-m resnet20a] [-d cifar10] [--limit 3000] [--output_dir DIR]

Every ranking is made by assess, every repair by correct, and measured by pretrain (`--state corrected`) on test; what
they leave lies under --output_dir. Three random rankings, and the rear of the exact one, say whether ranking matters.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine
import pandas as pd
from scipy.stats import kendalltau

from deeppatch import runtime
from deeppatch.cli.main import guarded
from deeppatch.localization.ranking import Ranking, choose, random_ranking

Keep = Callable[[str, pd.DataFrame], None]

# name of a ranking, options of assess, the exact one that it stands for
RANKINGS = {
    "perfloss": ("-f perfloss", "perfloss"),
    "perfloss, amp": ("-f perfloss --amp", "perfloss"),
    "perfloss, race 0.1": ("-f perfloss --race 0.1", "perfloss"),
    "perfloss, race 0.01": ("-f perfloss --race 0.01", "perfloss"),
    "taylor": ("-f taylor", "perfloss"),
    "taylor, refine 8": ("-f taylor --refine 8", "perfloss"),
    "featswap": ("-f featswap", "featswap"),
    "featswap, race 0.1": ("-f featswap --race 0.1", "featswap"),
    "activation": ("-f activation", "featswap"),
    "activation, refine 8": ("-f activation --refine 8", "featswap"),
}
SEEDS = (1, 2, 3)


def stage(script: str, options: argparse.Namespace, folder: Path, *more: str) -> Path:
    """Run a command, or take what it left, and return the folder of the model's artifacts."""
    limit = options.rank_limit if script == "select" else options.limit
    given = ["-m", options.model, "-d", options.dataset, "--weights", str(options.weights), "--limit", str(limit)]
    status = guarded(script, [*given, "--data_dir", str(options.data_dir), "--output_dir", str(folder), *more, "-r"],
                     "python src/{script}.py")  # fmt: skip
    if status:
        sys.exit(status)
    return folder / options.dataset / options.model


def newest(folder: Path, pattern: str) -> Path:
    """Return the latest file of a pattern."""
    return max(folder.glob(pattern), key=lambda path: path.stat().st_mtime)


def rank(options: argparse.Namespace) -> dict[str, Path]:
    """Make every ranking and return its file."""
    files = {}
    for name, (words, _) in RANKINGS.items():
        folder = options.output_dir / name.replace(", ", "-").replace(" ", "")
        files[name] = newest(stage("select", options, folder, *words.split()), "assess-*/ranking.json")
    content = json.loads(files["perfloss"].read_text())
    widths = {name: len(layer["order"]) for name, layer in content["layers"].items()}
    for seed in SEEDS:
        path = options.output_dir / f"random{seed}.json"
        path.write_text(json.dumps({**content, **random_ranking(widths, seed).to_json()}))
        files[f"random, seed {seed}"] = path
    return files


def taus(files: dict[str, Path]) -> pd.DataFrame:
    """Return Kendall's tau of each layer, one a row, against the exact ranking, a column for each ranking."""
    rankings = {name: Ranking.from_json(json.loads(path.read_text())) for name, path in files.items()}
    exact = {name: rankings[_exact(name)] for name in rankings}
    return pd.DataFrame({
        name: {layer: _tau(order, exact[name].order[layer]) for layer, order in ranking.order.items()}
        for name, ranking in rankings.items()
    }).rename_axis("layer").reset_index()  # fmt: skip


def agreement(files: dict[str, Path], layers: pd.DataFrame, ratio: float) -> pd.DataFrame:
    """Return how far rankings agree with the exact one: tau over `layers`, what is chosen, passes spared, and time."""
    contents = {name: json.loads(path.read_text()) for name, path in files.items()}
    rows = []
    for name, content in contents.items():
        rankings = (Ranking.from_json(each) for each in (content, contents[_exact(name)]))
        chosen, exact = (choose(ranking, ratio, "front", 0) for ranking in rankings)
        common = sum(len(set(channels) & set(chosen[layer])) for layer, channels in exact.items())
        rows.append({
            "ranking": name, "median_tau": layers[name].median(), "least_tau": layers[name].min(),
            "overlap_percent": 100 * common / sum(map(len, exact.values())), "passes_spared": _spared(content),
            "seconds": _seconds(files[name]),
        })  # fmt: skip
    return pd.DataFrame(rows)


def _exact(name: str) -> str:
    return RANKINGS.get(name, ("", "perfloss"))[1]


def _tau(order: list[int], other: list[int]) -> float:
    places = [sorted(range(len(row)), key=row.__getitem__) for row in (order, other)]
    return float(kendalltau(*places).statistic)


def _spared(content: dict[str, Any]) -> float | None:
    return content["all_image_passes"] / content["image_passes"] if "image_passes" in content else None


def _seconds(ranking: Path) -> float | None:
    record = ranking.parent / "run.json"
    return float(json.loads(record.read_text())["wall_seconds"]) if record.exists() else None


def repair(options: argparse.Namespace, files: dict[str, Path], keep: Keep) -> pd.DataFrame:
    """Patch with each ranking at each ratio, and return clean and blurred accuracy on test in percent."""
    runs = [*((name, "front") for name in files), ("perfloss", "rear")]
    rows = []
    for ratio in options.ratios:
        for name, side in runs:
            folder = options.output_dir / f"repaired-{name.replace(', ', '-').replace(' ', '')}-{side}-{ratio:g}"
            words = ["-c", "patch", "--ranking", str(files[name]), "--susp_ratio", f"{ratio:g}", "--susp_side", side]
            stage("correct", options, folder, *words, "--crt_epoch", str(options.crt_epoch))
            place = stage("eval", options, folder, "--state", "corrected", *words)
            measured = json.loads(newest(place, "eval-*/metrics.json").read_text())
            rows.append({"ranking": f"{name}, {side}", "ratio": ratio, **accuracies(measured)})
            keep("repaired", pd.DataFrame(rows))
    return pd.DataFrame(rows)


def accuracies(measured: dict[str, Any]) -> dict[str, float]:
    """Return what a metrics.json of pretrain says about clean and blurred images."""
    return {key: measured["accuracy_percent"][key] for key in ("clean", "blurred")}


def main() -> None:
    """Print both tables, and write them as CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-m", "--model", default="resnet20a")
    parser.add_argument("-d", "--dataset", default="cifar10")
    parser.add_argument("--weights", type=Path, required=True, help="what pretrain left: weights.safetensors")
    parser.add_argument(
        "--limit", type=int, default=3000, help="images of every split to repair with and to test on (default: 3000)"
    )
    parser.add_argument("--rank_limit", type=int, default=300, help="val images to rank on (default: 300)")
    parser.add_argument("--crt_epoch", type=int, default=3, help="epochs of a correction (default: 3)")
    parser.add_argument(
        "--bfloat16", action="store_true", help="rank in bfloat16 with --amp even where the processor has none"
    )
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.1, 0.25, 0.5])
    parser.add_argument("--data_dir", type=Path, default=Path("data"))
    parser.add_argument("--output_dir", type=Path, default=Path("output/rankings"))
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    with runtime.assume_bfloat16() if options.bfloat16 else contextlib.nullcontext():
        files = rank(options)
    device = runtime.pick_device(runtime.default_device())

    def keep(name: str, frame: pd.DataFrame) -> None:
        machine.signed(frame, options, device).to_csv(options.output_dir / f"{name}.csv", index=False)

    layers = taus(files)
    keep("agreement-layers", layers)
    found = agreement(files, layers, 0.25)
    keep("agreement", found)
    print(found.to_string(index=False, float_format="%.3g"))
    repaired = repair(options, files, keep)
    print(repaired.pivot(index="ranking", columns="ratio", values="blurred").to_string(float_format="%.2f"))


if __name__ == "__main__":
    main()
