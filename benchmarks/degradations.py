"""Repair a published network against blur, and against many degradations: what does either do on fifteen common ones?

python benchmarks/degradations.py [--weights FILE] [-m resnet32a] [--epochs N] [--limit N] [--hold_out NAMES]

Two patches and two fine-tuned networks: one of each reads the published blur only, the others all common corruptions
but those held out. Both are measured, and their routers calibrated, with what they were trained on; everything else is
held out. What is finished is not run again. Leaves a CSV file of a row for each patch and type of degradation.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import machine
import pandas as pd
from repair import left

PATCH = ["-f", "taylor", "-c", "patch", "--crt_type", "replace"]
NETWORKS = ["pretrained", "finetuned", "patched always on", "switched"]


def main() -> None:
    """Run both chains, and write their tables as one."""
    options = parser().parse_args()
    frames = [chain(options, name, degradations) for name, degradations in trainings(options).items()]
    frame = pd.concat(frames, ignore_index=True)
    record = json.loads((evaluated(options, "all-without") / "run.json").read_text(encoding="utf-8"))
    images = f"{options.limit} test images of {options.dataset} at each of five severities"
    machine.write(frame, options, machine.prepared(options.device), images=images, revision=record["git"])


def trainings(options: argparse.Namespace) -> dict[str, list[str]]:
    """Return what patch and fine-tuning are trained on, as options, by name."""
    return {"blur": [], "all but held out": ["-n", "all", "--hold_out", options.hold_out]}


def chain(options: argparse.Namespace, name: str, degradations: list[str]) -> pd.DataFrame:
    """Run the stages for one patch, and return its table."""
    for stage, arguments in steps(options, degradations):
        machine.run_stage(stage, arguments)
    return collected(evaluated(options, "all-without" if degradations else "gaussion"), name)


def steps(options: argparse.Namespace, degradations: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield the stages with their arguments; those of a later one name what an earlier one has left."""
    shared = ["-m", options.model, "-d", options.dataset, "--device", options.device]
    shared += ["--output_dir", str(options.output_dir), "-r"]
    yield "pretrain", [*shared, *(["--weights", options.weights] if options.weights else [])]
    shared += ["--base", str(left(options, "pretrain", machine.SEED) / "weights.safetensors")]
    yield "assess", [*shared, *degradations, "-f", "taylor"]
    training = ["--epochs", str(options.epochs)]
    yield "correct", [*shared, *degradations, *PATCH, *training]
    yield "correct", [*shared, *degradations, "-c", "finetune", *training]
    measured = degradations or ["-n", "gaussion,all", "--hold_out", "all"]
    files = ["--patch", str(only(options, "correct-patch", degradations, "patch.safetensors"))]
    files += ["--finetuned", str(only(options, "correct-finetune", degradations, "weights.safetensors"))]
    yield "evaluate", [*shared, *PATCH, *measured, "--limit", str(options.limit), *files]


def only(options: argparse.Namespace, stem: str, degradations: list[str], file: str) -> Path:
    """Return the file that correct left for the blur alone, or for all degradations."""
    folders = (options.output_dir / options.dataset / options.model).glob(f"{stem}-*")
    found = [folder / file for folder in folders if ("-all-" in folder.name) == bool(degradations)]
    if len(found) != 1:
        raise SystemExit(f"{options.output_dir} has {len(found)} runs {stem}; give an --output_dir of its own")
    return found[0]


def evaluated(options: argparse.Namespace, part: str) -> Path:
    """Return the folder that evaluate left."""
    folders = (options.output_dir / options.dataset / options.model).glob("switch-*")
    (found,) = [folder for folder in folders if (part == "gaussion") == ("gaussion" in folder.name)]
    return found


def collected(folder: Path, name: str) -> pd.DataFrame:
    """Return accuracies in percent by type of degradation, means over severities, and the router's AUROC."""
    errors = pd.read_csv(folder / "corruptions.csv")
    errors["accuracy"] = 100 - errors["error_percent"]
    table = errors.pivot_table(index=["corruption", "held_out"], columns="network", values="accuracy", sort=False)
    table = table[NETWORKS].round(2).reset_index()
    table["AUROC"] = table["corruption"].map(areas_under_curves(folder))
    table["held out"] = table.pop("held_out").map({True: "yes", False: ""})
    table.insert(0, "trained on", name)
    return table


def areas_under_curves(folder: Path) -> pd.Series[float]:
    """Return how well the router tells each type of degradation from clean images, a mean over its severities."""
    record = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    routing = [record["routing"], record.get("held_out", {}).get("routing", {"auroc": {}})]
    areas = pd.Series({view: area for each in routing for view, area in each["auroc"].items()}, dtype=float)
    return areas.groupby(kind_of_view).mean().round(3)


def kind_of_view(view: str) -> str:
    """Return the type of degradation of a view: `s=1` is blur, as is `gaussion-s=1`, and `fog-3` is fog."""
    return "gaussion" if "s=" in view else view.rpartition("-")[0]


def parser() -> argparse.ArgumentParser:
    """Return the parser of this benchmark's options."""
    found = machine.parser(__doc__ or "")
    found.add_argument("--weights", metavar="FILE", help="weights of the network (default: the published ones)")
    found.add_argument("-m", "--model", default="resnet32a", metavar="NAME")
    found.add_argument("-d", "--dataset", default="cifar10", metavar="NAME")
    found.add_argument("--epochs", type=int, default=20, metavar="N", help="of patch and fine-tuning (default: 20)")
    found.add_argument("--limit", type=int, default=10000, metavar="N", help="test images (default: 10000)")
    found.add_argument("--hold_out", default="impulse_noise,motion_blur,fog,pixelate", metavar="NAMES")
    found.add_argument("--output_dir", type=Path, default=Path("output"), metavar="FOLDER")
    return found


if __name__ == "__main__":
    main()
