"""Repair a published network against blur over several seeds: does clean accuracy stay, and how much is gained?

python benchmarks/repair.py [--weights FILE] [-m resnet32a] [-d cifar10] [--seeds N ...] [--epochs N] [--rank_images N]

For each seed the stages run one after the other, with the same budget for patch and fine-tuning: pretrain (reads the
weights, which it fetches where no file is given), assess (perfloss on `--rank_images` val images), correct twice,
evaluate. What is finished is not run again, so that an interrupted run goes on. Leaves a CSV file of a row for each
seed and network, and README's picture.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import machine
import pandas as pd

from deeppatch.data.names import slug
from deeppatch.report.repair_figure import draw_repair
from deeppatch.zoo.names import model_slug

PATCH = ["-f", "perfloss", "-c", "patch", "--crt_type", "replace"]
SHOWN = {"patched always on": "patched"}  # names in the picture


def main() -> None:
    """Run the stages, collect their tables, and draw them."""
    options = parser().parse_args()
    for seed in options.seeds:
        for stage, arguments in steps(options, seed):
            machine.run_stage(stage, arguments)
    frames, revisions, test_images = zip(*(collected(options, seed) for seed in options.seeds), strict=True)
    frame = pd.concat(frames, ignore_index=True)
    images = f"all {test_images[0]} test images of {options.dataset}; {options.rank_images} val images for the ranking"
    device = machine.prepared(options.device)
    machine.write(frame, options, device, images=images, **made_by(list(revisions), machine.REVISION))
    drawn = frame[frame["network"] != "oracle router"].replace({"network": SHOWN})
    draw_repair(drawn, options.picture, f"{options.model} on {options.dataset}, {test_images[0]} test images")
    print(f"drawn in {options.picture}")


def parser() -> argparse.ArgumentParser:
    """Return the parser of this benchmark's options."""
    found = machine.parser(__doc__ or "")
    found.add_argument("--weights", metavar="FILE", help="a checkpoint (default: the network's published one)")
    found.add_argument("-m", "--model", default="resnet32a", metavar="NAME")
    found.add_argument("-d", "--dataset", default="cifar10", metavar="NAME")
    found.add_argument("--seeds", type=int, nargs="+", default=[2021, 2022, 2023], metavar="N")
    found.add_argument("--epochs", type=int, default=20, metavar="N", help="of patch and fine-tuning (default: 20)")
    found.add_argument("--rank_images", type=int, default=1000, metavar="N", help="val images for the ranking")
    found.add_argument("--output_dir", type=Path, default=Path("output"), metavar="FOLDER")
    found.add_argument("--picture", type=Path, default=Path("docs/images/repair.png"), metavar="FILE")
    return found


def steps(options: argparse.Namespace, seed: int) -> Iterator[tuple[str, list[str]]]:
    """Yield the stages of one seed with their arguments; those of a later one name what an earlier one has left."""
    shared = ["-m", options.model, "-d", options.dataset, "--seed", str(seed), "--device", options.device]
    shared += ["--output_dir", str(options.output_dir), "-r"]
    training = ["--epochs", str(options.epochs)]
    yield "pretrain", [*shared, *(["--weights", options.weights] if options.weights else [])]
    base = left(options, "pretrain", seed) / "weights.safetensors"
    yield "assess", [*shared, "-f", "perfloss", "--limit", str(options.rank_images), "--base", str(base)]
    ranking = left(options, "assess-perfloss", seed) / "ranking.json"
    yield "correct", [*shared, *PATCH, *training, "--ranking", str(ranking)]
    yield "correct", [*shared, "-c", "finetune", *training]
    yield "evaluate", [*shared, *PATCH]


def collected(options: argparse.Namespace, seed: int) -> tuple[pd.DataFrame, str, int]:
    """Return the table that evaluate left for a seed, the revision that made it, and the number of test images."""
    folder = left(options, "switch", seed)
    table = pd.read_csv(folder / "metrics.csv")
    wide = {measure: rows.drop(columns="measure") for measure, rows in table.groupby("measure", sort=False)}
    frame = wide["accuracy"].assign(seed=seed)
    for measure, name in (("repair", "repaired"), ("break", "newly wrong")):
        frame[name] = frame["network"].map(wide[measure].set_index("network")["append"])
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    count = int(json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["test_images"])
    return frame[["seed", *(name for name in frame.columns if name != "seed")]], record["git"], count


def made_by(stages: list[str | None], collector: str | None) -> dict[str, str | None]:
    """Return the revision of the stages, or all where seeds differ in it, and a note where another one collected."""
    found = [each or "unknown" for each in dict.fromkeys(stages)]
    if stages == [collector] * len(stages):
        return {"revision": collector}
    note = f"the stages ran at revision {', '.join(found)}, their tables were collected at {collector or 'unknown'}"
    return {"revision": stages[0] if len(found) == 1 else f"revisions {', '.join(found)}", "note": note}


def left(options: argparse.Namespace, stem: str, seed: int) -> Path:
    """Return the folder that a stage left for a seed."""
    records = sorted((options.output_dir / slug(options.dataset) / model_slug(options.model)).glob(f"{stem}*/run.json"))
    found = [
        path.parent for path in records if json.loads(path.read_text(encoding="utf-8"))["settings"]["seed"] == seed
    ]
    if len(found) != 1:
        raise SystemExit(
            f"{options.output_dir} has {len(found)} runs {stem} of seed {seed}; give an --output_dir of its own"
        )
    return found[0]


if __name__ == "__main__":
    main()
