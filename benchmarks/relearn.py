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
import shlex
from typing import Any

import machine  # noqa: F401  (puts the package on the path)
from ledger import at_once
from relearn_runs import base, finished, outcome, parsed, pretraining, shared, unfinished, with_base, write
from relearn_runs import parser as parser_with
from relearn_table import PRIOR, REFERENCE, START

from deeppatch.hybrid.names import METHODS
from deeppatch.storage import read_record

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
    runs = [run for words in given for name in trained if (run := result(options, words, name))]
    write(options, runs, reference=REFERENCE)
    if failed:
        raise SystemExit("left out, because they failed: " + "; ".join(failed))


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


def result(options: argparse.Namespace, words: list[str], name: str) -> dict[str, Any] | None:
    """Return what a run of relearn left, with the seconds of its choice; None where it has not finished."""
    folder = finished("relearn", [*words, *relearning(options, name)])
    if folder is None:
        return None
    method = chosen_by(name)
    folders = [folder, *([finished("annotate", [*words, *annotating(options, method)])] if method else [])]
    return outcome(name, folder, [record for each in folders if each and (record := read_record(each))])


def parser() -> argparse.ArgumentParser:
    """Return the parser of this benchmark's options."""
    return parser_with(__doc__ or "", ROWS)


if __name__ == "__main__":
    main()
