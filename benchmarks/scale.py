"""How does the cost of each stage grow with filters, images, size and depth, and what does a study cost on machines?

python benchmarks/scale.py [--rounds N] [--small] [--device cpu|cuda] [--records FOLDER --config FILE] [--page]

Times the functions behind the stages on plain networks and random images, with one factor varied at a time, and fits a
power of it by least squares on logarithms. With --records, the folder of a study whose jobs have finished, the seconds
that its records hold are scheduled on 1, 8 and 64 machines: each machine runs one job at a time, a job begins when what
it reads is there, and of the jobs that may begin the one with the longest way to the end comes first. --page writes the
tables' places into docs/scale.md; `pipenv run tables` fills them.
"""

from __future__ import annotations

import argparse
import heapq
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import machine
import numpy as np
import pandas as pd
import torch
from torch import nn

from deeppatch import runtime
from deeppatch.data.corruptions import SIGMAS, GaussianBlur
from deeppatch.data.dataset import Data
from deeppatch.data.images import Images
from deeppatch.decomposition.influence import influence
from deeppatch.errors import UserError
from deeppatch.evaluation import evaluate
from deeppatch.hybrid.choosing import choose_labels
from deeppatch.hybrid.relearning import relearn
from deeppatch.ledger.comparing import compare
from deeppatch.localization.scoring import rank_filters
from deeppatch.modular.gradient_search import GradientSearch
from deeppatch.modular.splitting import split_into_modules
from deeppatch.patching.calibration import fit_switch
from deeppatch.patching.comparison import compare_networks
from deeppatch.patching.training import train_patch
from deeppatch.retrain.finetune import finetune
from deeppatch.storage import RECORD

CLASSES, RATIO = 5, 0.25
USUAL = {"filters": 16, "images": 256, "size": 16, "depth": 4}  # of each layer, of each part, of a side, layers
FACTORS = {"filters": (8, 16, 32), "images": (128, 256, 512), "size": (8, 16, 32), "depth": (2, 4, 8)}
MACHINES = (1, 8, 64)
PAGE = Path(__file__).resolve().parents[1] / "docs" / "scale.md"
BEGIN, END = "<!-- measured -->\n", "<!-- measured until here -->"


def main() -> None:
    """Measure, fit, schedule, and write tables."""
    options = parser().parse_args()
    scheduled = study(options.records, options.config) if options.records else None  # first, where mistakes are told
    device = machine.prepared(options.device)
    frame = pd.DataFrame(list(measured(options, device)))
    fitted = fits(frame)
    print(fitted.to_string(index=False, float_format="%.2f"))
    machine.write(frame, options, device, images="random")
    machine.write(fitted, machine.beside(options, "fits"), device, images="random")
    if scheduled is not None:
        machine.write(scheduled, machine.beside(options, "study"), device, images="those of the study")
    if options.page:
        write_page(options.output, with_study=bool(options.records))


def parser() -> argparse.ArgumentParser:
    """Return the parser of this benchmark's options."""
    found = machine.parser(__doc__ or "")
    found.add_argument("--rounds", type=int, default=3, metavar="N", help="the fastest of so many counts (default: 3)")
    found.add_argument("--small", action="store_true", help="a quarter of the images and no largest value, for a test")
    found.add_argument("--records", type=Path, metavar="FOLDER", help="OUTPUT/studies/NAME of a study that has run")
    found.add_argument("--config", type=Path, metavar="FILE", help="with --records: the configuration of that study")
    found.add_argument("--page", action="store_true", help="write the places of the tables into docs/scale.md")
    return found


def measured(options: argparse.Namespace, device: torch.device) -> Iterator[dict[str, object]]:
    """Yield the seconds of every stage at the usual values, and at each other value of each factor."""
    divisor = 4 if options.small else 1
    for factor, values in FACTORS.items():
        for value in values[:-1] if options.small else values:
            setting = {**USUAL, factor: value}
            setting["images"] //= divisor
            calls = stages(setting, device)
            for stage, call in calls.items():
                best = min(runtime.seconds(call, device) for _ in range(options.rounds))
                print(f"{stage}, {factor} {value}: {best:.3f} s", flush=True)
                yield {"stage": stage, "factor": factor, "value": setting[factor], "seconds": round(best, 4)}


def network(filters: int, depth: int) -> nn.Module:
    """Return a plain network: convolution, normalisation and ReLU `depth` times, and a linear layer."""
    layers: list[nn.Module] = []
    for index in range(depth):
        layers += [nn.Conv2d(filters if index else 3, filters, 3, padding=1, bias=False), nn.BatchNorm2d(filters)]
        layers += [nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(filters, CLASSES))


def stages(setting: Mapping[str, int], device: torch.device) -> dict[str, Callable[[], object]]:
    """Return what each stage computes, for images in each part and a network of these dimensions."""
    draw = runtime.generator(machine.SEED, "scale")
    shape = (setting["images"], 3, setting["size"], setting["size"])
    pixels = torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8)
    part = Images(pixels, torch.arange(len(pixels)) % CLASSES).to(device)
    data, blur = Data(part, part, part, tuple(map(str, range(CLASSES)))), GaussianBlur(SIGMAS[::2])
    torch.manual_seed(machine.SEED)
    model = network(setting["filters"], setting["depth"]).to(device).eval()
    channels = {
        name: list(range(max(1, round(RATIO * each.out_channels))))
        for name, each in model.named_modules()
        if isinstance(each, nn.Conv2d)
    }
    patch = train_patch(model, data, blur, channels, epochs=1)
    switched = fit_switch(model, patch, data, blur)
    selection = choose_labels(model, part.pixels, data, "25%", method="random")
    selection = selection.with_labels(part.labels[selection.bought])
    return {
        "pretrain: measure": lambda: evaluate(model, data, blur),
        "assess: perfloss": lambda: rank_filters(model, data, blur, method="perfloss"),
        "assess: taylor": lambda: rank_filters(model, data, blur, method="taylor"),
        "correct: an epoch of finetune": lambda: finetune(model, data, blur, epochs=1),
        "correct: an epoch of a patch": lambda: train_patch(model, data, blur, channels, epochs=1),
        "evaluate: fit a router": lambda: fit_switch(model, patch, data, blur),
        "evaluate: measure": lambda: compare_networks(model, patch, switched, data, blur),
        "compare: two networks": lambda: compare({"before": model, "after": patch.apply(model)}, data, blur),
        "influence": lambda: influence(model, data, k=2),
        "modularize: tables and an epoch": lambda: split_into_modules(
            model, data, method=GradientSearch(epochs=1, head=False), sensitivity_images=32
        ),
        "annotate: hybrid": lambda: choose_labels(model, part.pixels, data, "25%"),
        "relearn: an epoch": lambda: relearn(model, data, part.pixels, selection, epochs=1, lr=0.001),
    }


def fits(frame: pd.DataFrame) -> pd.DataFrame:
    """Return for each stage and factor the power p of seconds ~ factor^p, and how far the points lie from it.

    `at most off` is the largest ratio of a measured and a fitted time, so that 1 is exact.
    """
    rows = []
    for (stage, factor), own in frame.groupby(["stage", "factor"], sort=False):
        x, y = np.log(own["value"].astype(float)), np.log(own["seconds"].clip(lower=1e-6))
        power, offset = np.polyfit(x, y, 1)
        off = float(np.exp(np.abs(y - power * x - offset).max()))
        rows.append({"stage": stage, "factor": factor, "power": round(power, 2), "at most off": round(off, 2)})
    return pd.DataFrame(rows)


def study(records: Path, config: Path | None) -> pd.DataFrame:
    """Return hours, speed-up and share of busy time of a study on several machines, from the seconds of its records."""
    if config is None:
        raise SystemExit("--records: name the configuration of that study with --config")
    sys.path.append(str(PAGE.parents[1] / "workflow" / "scripts"))
    import matrix
    import schema

    try:
        jobs = matrix.jobs(schema.read(config))
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    if absent := [key for key in jobs if not (records / key / RECORD).exists()]:
        raise SystemExit(f"{records}: {len(absent)} of {len(jobs)} jobs have not finished, such as {absent[0]}")
    seconds = {key: float(json.loads((records / key / RECORD).read_bytes())["wall_seconds"]) for key in jobs}
    reads = {key: {*job.reads.values(), *job.networks} for key, job in jobs.items()}
    return on_machines(seconds, reads)


def on_machines(seconds: Mapping[str, float], reads: Mapping[str, set[str]]) -> pd.DataFrame:
    """Return a row for each number of machines: hours, speed-up over one, and the share of time that they are busy."""
    total = sum(seconds.values())
    rows = []
    for count in MACHINES:
        taken = makespan(seconds, reads, count)
        rows.append(
            {
                "machines": count,
                "hours": round(taken / 3600, 2),
                "speed-up": round(total / taken, 2),
                "busy (%)": round(100 * total / (taken * count), 1),
            }
        )
    return pd.DataFrame(rows)


def makespan(seconds: Mapping[str, float], reads: Mapping[str, set[str]], machines: int) -> float:
    """Return when the last job ends, by list scheduling with the longest way to the end first.

    >>> makespan({"a": 1.0, "b": 2.0, "c": 2.0}, {"a": set(), "b": {"a"}, "c": {"a"}}, 2)
    3.0
    """
    followers: dict[str, list[str]] = {job: [] for job in seconds}
    for job, needed in reads.items():
        for each in needed:
            followers[each].append(job)
    way: dict[str, float] = {}

    def longest(job: str) -> float:
        if job not in way:
            way[job] = seconds[job] + max((longest(each) for each in followers[job]), default=0.0)
        return way[job]

    open_inputs = {job: len(needed) for job, needed in reads.items()}
    ready = [(-longest(job), job) for job, count in open_inputs.items() if not count]
    heapq.heapify(ready)
    running: list[tuple[float, str]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < machines:
            job = heapq.heappop(ready)[1]
            heapq.heappush(running, (now + seconds[job], job))
        now = running[0][0]
        while running and running[0][0] <= now:  # all that end at once, before any other begins
            for each in followers[heapq.heappop(running)[1]]:
                open_inputs[each] -= 1
                if not open_inputs[each]:
                    heapq.heappush(ready, (-longest(each), each))
    return now


def write_page(table: Path, *, with_study: bool) -> None:
    """Write where the tables stand into the page."""
    folder = table.resolve().parent.relative_to(PAGE.parents[1]).as_posix()
    parts = [
        ("How cost grows", "-fits", "The power of a factor: 1 means twice the time for twice as many, 2 four times."),
        ("The measurements", "", "Seconds, the fastest of several rounds; the other factors have their usual values."),
    ]
    if with_study:
        said = "The seconds of its jobs, scheduled: a job begins when what it reads is there."
        parts.append(("What a study costs", "-study", said))
    text = "\n".join(
        f"### {title}\n\n{about}\n\n<!-- table: {folder}/{table.stem}{suffix}.csv; commands -->\n<!-- end -->\n"
        for title, suffix, about in parts
    )
    page = PAGE.read_text(encoding="utf-8")
    pattern = re.escape(BEGIN) + ".*?" + re.escape(END)
    PAGE.write_text(re.sub(pattern, lambda _match: f"{BEGIN}\n{text}\n{END}", page, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    main()
