"""What does each setting of HybridRepair change: tau, weights, size of clusters, rounds, weight decay, coreset's start?

python benchmarks/ablation.py [-m resnet8] [-d digits] [--bias B] [--seeds N ...] [--budget 40] [--limit N]
    [--rows NAME ...] [-e 4] [--base_epochs 10] [--pretrain WORDS] [--annotate WORDS] [--relearn WORDS]
    [--output_dir FOLDER]

Every row differs from `published` in one setting; `none` is the control, which trains as long and buys no label. All
stages run in this process: pretrain once a bias and seed, annotate once for each choice, relearn for each row. What is
finished is not run again.

Leaves two CSV files: one with a row for each setting, over the seeds, and FILE-seeds.csv with a row for each run.
"""

from __future__ import annotations

import argparse
import shlex
from typing import Any

import machine
import relearn_runs
from relearn_runs import Run, base, finished, outcome, parsed, pretraining, shared, unfinished, with_base, write

from deeppatch.storage import read_record

CONTROL, PUBLISHED = "none", "published"
# the options of the choice, which annotate and relearn share, and those of only relearn
ROWS: dict[str, tuple[str, str]] = {
    CONTROL: ("--method none", ""),
    PUBLISHED: ("", ""),
    "tau mean": ("--tau mean", ""), "tau 0.1": ("--tau 0.1", ""), "tau 0.3": ("--tau 0.3", ""),
    "tau 1: no threshold": ("--tau 1", ""),
    "pool weights fixed": ("", "--pool_weights fixed"), "pool weights equal": ("", "--pool_weights equal"),
    "weight of pseudo-labels 10": ("", "--pseudo_weight 10"), "weight of pseudo-labels 1": ("", "--pseudo_weight 1"),
    "no pseudo-labels": ("", "--use labels"),
    "cluster size 3": ("--cluster_size 3", ""), "cluster size 5": ("--cluster_size 5", ""),
    "cluster size 20": ("--cluster_size 20", ""),
    "2 rounds": ("--rounds 2", ""), "4 rounds": ("--rounds 4", ""),
    "weight decay 0": ("", "--weight_decay 0"), "weight decay 0.005": ("", "--weight_decay 0.005"),
    "coreset from training images": ("--method coreset", ""),
    "coreset from the pool": ("--method coreset --coreset_start pool", ""),
}  # fmt: skip


def main() -> None:
    """Run the stages, and write both tables."""
    options = parser().parse_args()
    for name in options.rows:
        parsed("relearn", relearning(options, name, shared(options, options.bias[0], 0)))  # mistakes come first
    units = [(bias, seed) for bias in options.bias for seed in options.seeds]
    run([pretraining(options, *unit) for unit in units if base(options, *unit) is None])
    given = [with_base(options, *unit) for unit in units]
    for words in given:  # what a choice shares is run once
        for name in options.rows:
            run([("annotate", annotating(options, name, words)), ("relearn", relearning(options, name, words))])
    rows = [result(options, words, name) for words in given for name in options.rows]
    write(options, rows, reference=PUBLISHED)


def run(stages: list[Run]) -> None:
    """Run stages that have not finished, one after the other in this process."""
    for stage in stages:
        for name, words in unfinished([stage]):
            machine.run_stage(name, words)


def annotating(options: argparse.Namespace, name: str, words: list[str]) -> list[str]:
    """Return the options of annotate for a row."""
    usual = ["--budget", options.budget, "--views", str(options.views), *shlex.split(options.annotate)]
    return [*words, *usual, *shlex.split(ROWS[name][0])]


def relearning(options: argparse.Namespace, name: str, words: list[str]) -> list[str]:
    """Return the options of relearn for a row."""
    training = ["--pseudo_labels", "published", "-e", str(options.epochs), *shlex.split(options.relearn)]
    training += shlex.split(ROWS[name][1])
    return [*annotating(options, name, words), *training]


def result(options: argparse.Namespace, words: list[str], name: str) -> dict[str, Any]:
    """Return what a run of relearn left, with the seconds of its choice."""
    stages = (("relearn", relearning(options, name, words)), ("annotate", annotating(options, name, words)))
    folders = [folder for stage in stages if (folder := finished(*stage))]
    return outcome(name, folders[0], [record for folder in folders if (record := read_record(folder))])


def parser() -> argparse.ArgumentParser:
    """Return the parser of this benchmark's options."""
    found = relearn_runs.parser(__doc__ or "", ROWS)
    found.set_defaults(model="resnet8", dataset="digits", bias=["B"], seeds=[2021, 2022, 2023, 2024, 2025])
    found.set_defaults(budget="40", views=1, epochs=4, base_epochs=10)
    found.set_defaults(pretrain="--lr 0.1 --image_size 16 -b 32")
    found.set_defaults(relearn="--image_size 16 -b 32 --lr 0.01 --max_batches 12")
    found.add_argument(
        "--annotate", default="--image_size 16", metavar="WORDS", help="further options of the choice, in quotes"
    )
    return found


if __name__ == "__main__":
    main()
