"""Every stage run once without interruption on two small networks, and copies of what there was before and after."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import moments
import torch
from forked import Ended, Running

RESNET = "-m resnet8 -d digits --limit 30 --device cpu -b 20"
SIMCNN = "-m simcnn_svhn_weak -d digits_5 --limit 60 --device cpu -b 10"
PATCH = "-f perfloss -c patch --crt_type replace"
SELECTION = "--bias B --budget 6 --views 2 --features ssl --encoder resnet8"
# every stage in order; those of one network read what was left before
LINES = {
    "pretrain": f"eval {RESNET} --train -e 10 --lr 0.1",
    "assess": f"select {RESNET} -f perfloss",
    "correct-patch": f"correct {RESNET} {PATCH} --crt_epoch 4 --lr 0.1",
    "correct-finetune": f"correct {RESNET} -c finetune --crt_epoch 8 --lr 0.01",
    "evaluate": f"switch {RESNET} {PATCH}",
    "export": f"export {RESNET} {PATCH}",
    "influence": f"influence {RESNET} -k 5",
    "decompose": f"decompose finetune {RESNET} -e 4",
    "compare": f"compare {RESNET} -n gaussion,fog --severity 1,5",
    "pretrain-strong": f"eval {SIMCNN} --recipe strong -e 20 --lr 0.02",
    "modularize-grad": f"modularize {SIMCNN} --budget 6 --lr 0.01 --sensitivity_images 10",
    "modularize-ga": f"modularize {SIMCNN} --method ga --budget 4 --sensitivity_images 10 --search_images 20",
    "compose": f"compose {SIMCNN} --method ga --weak_epoch 3",
    "pretrain-biased": f"eval {RESNET} --train --bias B -e 6 --lr 0.1",
    "annotate": f"annotate {RESNET} {SELECTION} --epochs 4",
    "relearn": f"relearn {RESNET} {SELECTION} --encoder_epochs 4 -e 4 --steps 2 --lr 0.003",
}
UNTIL = os.environ.get("CAMPAIGN_UNTIL")  # the last stage, where not all are wanted
LINES = dict([*LINES.items()][: [*LINES].index(UNTIL) + 1]) if UNTIL else LINES
TIMES = ("wall_seconds", "seconds", "git")  # of a record: what a resumed run may have otherwise
Tree = dict[str, Any]


@dataclass
class Undisturbed:
    """A stage that nobody disturbed: how long it took, its file operations, and the tree of files that it left."""

    seconds: float
    operations: int
    tree: Tree


class Workshop:
    """One output folder that is put into the state before any stage, and the same stages done.

    `other` changes the weights that pretrain leaves, and with them all that follows, but no name of a folder.
    """

    def __init__(self, place: Path, *, other: bool = False) -> None:
        self.place, self.output, self.other = place, place / "output", other
        self.done: dict[str, Undisturbed] = {}

    def run_all(self) -> None:
        """Run every stage, and keep a copy of what there was before and after each."""
        for name in LINES:
            if name in self.done:
                continue
            self._keep(name)
            notes = self.place / f"operations-{name}"
            ended = self.start(name, moments.counting(notes)).wait()
            assert (ended.status, ended.err) == (0, ""), f"{name}: {ended}"
            self.done[name] = Undisturbed(ended.seconds, notes.stat().st_size, tree_of(self.output))
            shutil.copytree(self.output, self.place / f"after-{name}", symlinks=True)

    def _keep(self, name: str) -> None:
        self.output.mkdir(parents=True, exist_ok=True)
        shutil.copytree(self.output, self.place / f"before-{name}", symlinks=True)

    def restore(self, name: str) -> None:
        """Put the output folder into the state before a stage."""
        shutil.rmtree(self.output, ignore_errors=True)
        shutil.copytree(self.place / f"before-{name}", self.output, symlinks=True)

    def start(self, name: str, prepare: Callable[[], object] = lambda: None, more: str = "") -> Running:
        """Start a stage in a process of its own."""
        script, *arguments = shlex.split(f"{LINES[name]} {more}")

        def ready() -> None:
            if self.other and script == "eval":
                seed = torch.manual_seed
                torch.manual_seed = lambda number: seed(number + 1)  # type: ignore[assignment]
            prepare()

        return Running(script, [*arguments, "--output_dir", str(self.output)], ready)

    def resume(self, name: str) -> Ended:
        """Run a stage with -r to its end."""
        return self.start(name, more="-r").wait()

    def folders_of(self, name: str) -> list[str]:
        """Return the folders that a stage leaves, relative to the output folder."""
        before = {path.rpartition("/")[0] for path in tree_of(self.place / f"before-{name}") if is_record(path)}
        after = {path.rpartition("/")[0] for path in self.done[name].tree if is_record(path)}
        return sorted(after - before)

    def difference(self, name: str) -> str:
        """Return what differs between the output folder and what the undisturbed stage left; empty where nothing."""
        return difference(self.done[name].tree, tree_of(self.output))


def is_record(path: str) -> bool:
    """Tell whether a path is that of a run's record."""
    return path.endswith("/run.json")


def tree_of(folder: Path) -> Tree:
    """Return the hash of every file, and of a record what it says but for times."""
    found: Tree = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix != ".partial":  # what a kill in the middle of a write leaves in a cache
            content, name = path.read_bytes(), str(path.relative_to(folder))
            if is_record(name):
                found[name] = {key: value for key, value in json.loads(content).items() if key not in TIMES}
            else:
                found[name] = hashlib.sha256(content).hexdigest()
    return found


def difference(want: Tree, found: Tree) -> str:
    """Return in words how two trees differ; empty where they do not."""
    names = sorted(name for name in want.keys() | found.keys() if want.get(name) != found.get(name))
    how = ["missing" if name not in found else "too much" if name not in want else "other" for name in names]
    return "; ".join(f"{name} is {state}" for name, state in zip(names[:4], how, strict=False))
