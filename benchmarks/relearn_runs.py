"""What the benchmarks of relearn share: options, arguments of the stages, what has finished, and how it is written."""

from __future__ import annotations

import argparse
import contextlib
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import machine
import pandas as pd
from ledger import add_running
from relearn_table import START, table, with_starts
from repair import made_by

from deeppatch.cli.locating import locate_all, run_folder
from deeppatch.cli.options import RepairOptions
from deeppatch.cli.parsing import parse_stage
from deeppatch.data.names import slug
from deeppatch.errors import MissingArtifact, UserError
from deeppatch.hybrid.names import BIASES
from deeppatch.storage import RECORD, read_record, sha256
from deeppatch.zoo.names import model_slug

Run = tuple[str, list[str]]  # a stage and its arguments


def parser(doc: str, rows: Iterable[str]) -> argparse.ArgumentParser:
    """Return the parser of the options of a benchmark with these rows."""
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


def shared(options: argparse.Namespace, bias: str, seed: int) -> list[str]:
    """Return the options of all stages for a bias and a seed."""
    found = ["-m", options.model, "-d", options.dataset, "--bias", bias, "--seed", str(seed)]
    found += ["--device", options.device, "--data_dir", str(options.data_dir), "--output_dir", str(options.output_dir)]
    return found + (["--limit", str(options.limit)] if options.limit is not None else [])


def pretraining(options: argparse.Namespace, bias: str, seed: int) -> Run:
    """Return the stage that trains a base."""
    epochs = ["-e", str(options.base_epochs)]
    return "pretrain", [*shared(options, bias, seed), "--train", *epochs, *shlex.split(options.pretrain)]


def with_base(options: argparse.Namespace, bias: str, seed: int) -> list[str]:
    """Return the options of the stages that follow, with their base."""
    return [*shared(options, bias, seed), "--base", str(base(options, bias, seed))]


def base(options: argparse.Namespace, bias: str, seed: int) -> Path | None:
    """Return the weights of the one finished base of a bias, a seed and the limit; None where there is none."""
    runs = sorted((options.output_dir / slug(options.dataset) / model_slug(options.model)).glob(f"pretrain*/{RECORD}"))
    wanted = {"bias": bias, "seed": seed, "limit": options.limit}
    made = {path.parent: record["settings"] for path in runs if (record := read_record(path.parent))}
    found = [folder for folder, own in made.items() if all(own.get(name) == value for name, value in wanted.items())]
    if len(found) > 1:
        raise SystemExit(f"{', '.join(map(str, found))} are bases of bias {bias}, seed {seed}; keep one of them")
    return found[0] / "weights.safetensors" if found else None


def parsed(stage: str, words: Sequence[str]) -> Any:
    """Return the options that a stage reads from its arguments; what is wrong with them ends the process."""
    try:
        return parse_stage(stage, words, RepairOptions.prefix)
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


def write(options: argparse.Namespace, runs: list[dict[str, Any]], *, reference: str) -> None:
    """Write the table over the seeds, in which rows are compared with that of the reference, and the runs."""
    if not runs:
        raise SystemExit("no run has finished; see the messages above")
    frame = pd.DataFrame(runs)
    revisions = made_by(frame.pop("revision").tolist(), machine.REVISION)
    everything = with_starts(frame)
    shown = table(everything if START in options.rows else frame, reference)
    print(shown.to_string(index=False))
    counts = ", ".join(map(str, sorted(frame["test_images"].unique())))
    known = {**revisions, "seeds": sorted(frame["seed"].unique().tolist()), "n": int(frame["seed"].nunique())}
    images = f"{counts} test images (T2) of {options.dataset}"
    device = machine.prepared(options.device)
    machine.write(shown, options, device, images=images, **known)
    machine.write(everything, machine.beside(options, "seeds"), device, images=images, **known)
