"""Repair with few labels: what do the prior, every way to choose images, and pseudo-labels gain, on biases A, B and C?

python benchmarks/relearn.py [-m resnet20] [-d cifar10] [--bias A B C] [--seeds N ...] [--budget 350] [--limit N]
    [--rows NAME ...] [-e 10] [--base_epochs 30] [--pretrain WORDS] [--relearn WORDS] [--output_dir FOLDER] [--jobs N]

For each bias and seed the stages run as processes, `--jobs` side by side: pretrain (where the output folder has a base
of this bias, seed and limit already, that one is used, however it was trained), annotate for each way to choose images,
and relearn for each row. What is finished is not run again. The first relearn of a seed trains the warm start that all
share, and its seconds have that training; it is the control `none`, where that is among the rows.

Leaves two CSV files: one with a row for each bias and way, over the seeds, and FILE-seeds.csv with a row for each run.
Intervals have 95 %: Student's over seeds, and where there is one seed, those over its test images.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import machine
import pandas as pd
from ledger import add_running, at_once
from relearn_table import PRIOR, REFERENCE, START, table, with_starts
from repair import made_by

from deeppatch.cli import parsing
from deeppatch.cli.locating import locate_all, run_folder
from deeppatch.cli.options import RepairOptions
from deeppatch.data.names import slug
from deeppatch.errors import MissingArtifact, UserError
from deeppatch.hybrid.names import BIASES, METHODS
from deeppatch.storage import RECORD, read_record, sha256
from deeppatch.zoo.names import model_slug

CONTROL = "none"
# ssl-random buys what random buys, and ssl-consistency-imp what ssl-consistency buys
CHOICES = [method for method in METHODS if method not in (PRIOR, "ssl-random", "ssl-consistency-imp")]
SAFE, PUBLISHED = ["--pseudo_labels", "safe"], ["--pseudo_labels", "published"]
# the options of relearn for each row; the warm start is read from the others
ROWS: dict[str, list[str]] = {
    START: [],
    PRIOR: ["--method", PRIOR],
    **{method: ["--method", method, "--use", "labels", *PUBLISHED] for method in CHOICES},
    "hybrid published": ["--method", "hybrid", "--use", "both", *PUBLISHED],
    "hybrid safe": ["--method", "hybrid", "--use", "both", *SAFE],
    "safe without labels": ["--method", "hybrid", "--use", "unlabelled", *SAFE],
    "mcp safe": ["--method", "mcp", "--use", "both", *SAFE],
    "mcp safe, labels only": ["--method", "mcp", "--use", "labels", *SAFE],
}
Run = tuple[str, list[str]]  # a stage and its arguments


def main() -> None:
    """Run the stages, and write both tables."""
    options = parser().parse_args()
    trained = [name for name in options.rows if name != START]
    if not trained:
        raise SystemExit(f"--rows {START}: name a further row, because the warm start is read from those")
    for name in trained:
        parsed("relearn", [*shared(options, options.bias[0], 0), *relearning(options, name)])  # mistakes are told now
    units = [(bias, seed) for bias in options.bias for seed in options.seeds]
    failed = at_once(options, [pretraining(options, *unit) for unit in units if base(options, *unit) is None])
    given = [with_base(options, *unit) for unit in units if base(options, *unit) is not None]
    methods = list(dict.fromkeys(method for name in trained if (method := chosen_by(name))))
    choices = [("annotate", [*words, *annotating(options, method)]) for words in given for method in methods]
    failed += at_once(options, unfinished(choices))
    first = next((name for name in (CONTROL, *trained) if name in trained and name != PRIOR), trained[0])
    for names in ([first], [name for name in trained if name != first]):
        wanted = [("relearn", [*words, *relearning(options, name)]) for words in given for name in names]
        failed += at_once(options, unfinished(wanted))
    write(options, [run for words in given for name in trained if (run := result(options, words, name))])
    if failed:
        raise SystemExit("left out, because they failed: " + "; ".join(failed))


def shared(options: argparse.Namespace, bias: str, seed: int) -> list[str]:
    """Return the options of all stages for a bias and a seed."""
    found = [
        "-m",
        options.model,
        "-d",
        options.dataset,
        "--bias",
        bias,
        "--seed",
        str(seed),
        "--device",
        options.device,
    ]
    found += ["--data_dir", str(options.data_dir), "--output_dir", str(options.output_dir)]
    return found + (["--limit", str(options.limit)] if options.limit is not None else [])


def pretraining(options: argparse.Namespace, bias: str, seed: int) -> Run:
    """Return the stage that trains a base."""
    epochs = ["-e", str(options.base_epochs)]
    return "pretrain", [*shared(options, bias, seed), "--train", *epochs, *shlex.split(options.pretrain)]


def with_base(options: argparse.Namespace, bias: str, seed: int) -> list[str]:
    """Return the options of the stages that follow, with their base."""
    return [*shared(options, bias, seed), "--base", str(base(options, bias, seed))]


def annotating(options: argparse.Namespace, method: str) -> list[str]:
    """Return the options of annotate."""
    return ["--method", method, "--budget", options.budget, "--views", str(options.views)]


def relearning(options: argparse.Namespace, name: str) -> list[str]:
    """Return the options of relearn for a row."""
    chosen = ["--budget", options.budget, "--views", str(options.views)] if chosen_by(name) else []
    return [*ROWS[name], *chosen, "-e", str(options.epochs), *shlex.split(options.relearn)]


def chosen_by(name: str) -> str | None:
    """Return the method of annotate that chooses the images of a row; None where nothing is chosen."""
    method = ROWS[name][1] if ROWS[name] else PRIOR
    return None if method == PRIOR else method


def base(options: argparse.Namespace, bias: str, seed: int) -> Path | None:
    """Return the weights of the one finished base of a bias, a seed and the limit; None where there is none."""
    runs = sorted((options.output_dir / slug(options.dataset) / model_slug(options.model)).glob(f"pretrain*/{RECORD}"))
    wanted = {"bias": bias, "seed": seed, "limit": options.limit}
    records = {path.parent: read_record(path.parent) for path in runs}
    found = [
        folder for folder, record in records.items()
        if record and all(record["settings"].get(name) == value for name, value in wanted.items())
    ]  # fmt: skip
    if len(found) > 1:
        raise SystemExit(f"{', '.join(map(str, found))} are bases of bias {bias}, seed {seed}; keep one of them")
    return found[0] / "weights.safetensors" if found else None


def parsed(stage: str, words: Sequence[str]) -> Any:
    """Return the options that a stage reads from its arguments; what is wrong with them ends the process."""
    try:
        return parsing.parse(importlib.import_module(f"deeppatch.cli.{stage}.command"), words, RepairOptions.prefix)
    except UserError as error:
        raise SystemExit(f"{stage}: {error}") from None


def finished(stage: str, words: Sequence[str]) -> Path | None:
    """Return the folder that a stage left for these arguments, if it has finished from what its inputs are now."""
    options = parsed(stage, words)
    with contextlib.suppress(MissingArtifact):
        folder = run_folder(stage, options, locate_all(stage, options))
        record = read_record(folder)
        if record is not None and all(
            path.is_file() and sha256(path.read_bytes()) == digest
            for path, digest in ((options.output_dir / name, digest) for name, digest in record["inputs"].items())
        ):
            return folder
    return None


def unfinished(runs: Iterable[Run]) -> list[Run]:
    """Return the runs that have not finished."""
    return [run for run in runs if finished(*run) is None]


def result(options: argparse.Namespace, words: list[str], name: str) -> dict[str, Any] | None:
    """Return what a run of relearn left, with the seconds of its choice; None where it has not finished."""
    folder = finished("relearn", [*words, *relearning(options, name)])
    if folder is None:
        return None
    method = chosen_by(name)
    folders = [folder, *([finished("annotate", [*words, *annotating(options, method)])] if method else [])]
    return outcome(name, folder, [record for each in folders if each and (record := read_record(each))])


def outcome(name: str, folder: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what relearn left in a folder, as a row; `records` are those of all runs whose seconds count."""
    (row,) = pd.read_csv(folder / "row.csv").to_dict("records")
    return {
        "bias": row["bias"],
        "seed": row["seed"],
        "row": name,
        "raw_percent": row["raw_percent"],
        "start_percent": row["finetuned_percent"],
        "percent": row["last_percent"],
        "gained_points": row["gained_points"],
        "fixed": row["fixed"],
        "broken": row["broken"],
        "labels": row["labels_bought"],
        "test_images": row["test_images"],
        "seconds": round(sum(record["wall_seconds"] for record in records), 2),
        "revision": records[0]["git"],
    }


def write(options: argparse.Namespace, runs: list[dict[str, Any]], *, reference: str = REFERENCE) -> None:
    """Write the table over the seeds, in which rows are compared with that of the reference, and the runs."""
    if not runs:
        raise SystemExit("no run has finished; see the messages above")
    frame = pd.DataFrame(runs)
    revisions = made_by(frame.pop("revision").tolist(), machine.git_revision())
    everything = with_starts(frame)
    shown = table(everything if START in options.rows else frame, reference)
    print(shown.to_string(index=False))
    counts = ", ".join(map(str, sorted(frame["test_images"].unique())))
    known = {**revisions, "seeds": sorted(frame["seed"].unique().tolist()), "n": int(frame["seed"].nunique())}
    images = f"{counts} test images (T2) of {options.dataset}"
    device = machine.prepared(options.device)
    machine.write(shown, options, device, images=images, **known)
    machine.write(everything, machine.beside(options, "seeds"), device, images=images, **known)


def parser(doc: str = __doc__ or "", rows: Iterable[str] = ROWS) -> argparse.ArgumentParser:
    """Return the parser of this benchmark's options, or of another that has rows of its own."""
    found = machine.parser(doc)
    found.add_argument("-m", "--model", default="resnet20", metavar="NAME")
    found.add_argument("-d", "--dataset", default="cifar10", metavar="NAME")
    found.add_argument("--bias", nargs="+", choices=BIASES, default=list(BIASES), metavar="NAME")
    found.add_argument("--seeds", type=int, nargs="+", default=[machine.SEED], metavar="N")
    found.add_argument("--budget", default="350", metavar="N", help="labels, or a share of the pool (default: 350)")
    found.add_argument("--limit", type=int, metavar="N", help="images of each part (default: all)")
    found.add_argument(
        "--rows", nargs="+", choices=list(rows), default=list(rows), metavar="NAME", help=f"of {', '.join(rows)}"
    )
    found.add_argument("--views", type=int, default=8, metavar="N", help="AugMix views of an image (default: 8)")
    found.add_argument("-e", "--epochs", type=int, default=10, metavar="N", help="of relearn (default: 10)")
    found.add_argument("--base_epochs", type=int, default=30, metavar="N", help="of pretrain (default: 30)")
    found.add_argument("--pretrain", default="", metavar="WORDS", help="further options of pretrain, in quotes")
    found.add_argument("--relearn", default="", metavar="WORDS", help="further options of relearn, in quotes")
    add_running(found)
    return found


if __name__ == "__main__":
    main()
