"""What the benchmarks share: the package on the path, their options, and what the machine is and can do at best."""

from __future__ import annotations

import argparse
import datetime
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import torch

sys.path.append(str(Path(__file__).resolve().parents[1] / "src"))  # behind the standard library, for src/select.py

from deeppatch import runtime  # noqa: E402
from deeppatch.cli import main as command_line  # noqa: E402
from deeppatch.cli.options import SCRIPTS, RepairOptions  # noqa: E402
from deeppatch.stage import git_revision  # noqa: E402

SEED = 2021
REVISION = git_revision()  # when the benchmark begins: what it writes may itself be under version control
# an absolute path within a text: what leads to it, and its name
ABSOLUTE = re.compile(r"""(?<![\w.~/:*?\]])/(?:[^\s/'",\]]+/)*([^\s/'",\]]+)/?""")


def parser(doc: str) -> argparse.ArgumentParser:
    """Return a parser that knows --device and --output; the first line of `doc` says what is asked."""
    found = argparse.ArgumentParser(description=doc.splitlines()[0])
    table = Path("results", f"{Path(sys.argv[0]).stem}.csv")
    found.set_defaults(question=found.description)
    found.add_argument("--device", choices=["cpu", "cuda"], default=runtime.default_device())
    found.add_argument("--output", type=Path, metavar="FILE", default=table, help=f"CSV (default: {table})")
    return found


def run_stage(stage: str, arguments: list[str]) -> None:
    """Run a stage as on the command line; exit with its status where it fails."""
    if status := command_line.guarded(SCRIPTS[stage], arguments, RepairOptions.prefix):
        raise SystemExit(status)


def prepared(kind: str) -> torch.device:
    """Return the device of a kind, with threads and seeds set as the stages set them."""
    device = runtime.pick_device(kind)
    runtime.prepare(SEED)
    return device


def heading(device: torch.device) -> str:
    """Name hardware, threads and torch."""
    where = runtime.describe(device)
    threads = f"{where['threads']} thread{'s' * (where['threads'] > 1)}"
    return f"{where['hardware']}, {threads}, torch {where['torch']}"


def write(
    frame: pd.DataFrame,
    options: argparse.Namespace,
    device: torch.device,
    *,
    images: str | None = None,
    **known: Any,
) -> None:
    """Write a table as CSV to --output, and beside it, as JSON, which command made it, of what, when and where.

    Args:
        frame: The table; with a column `seed` it has a row for each seed.
        options: What the benchmark was given, with `output`.
        device: Where it ran.
        images: Which images it read, and how many, in words.
        known: Facts that replace those of this process, such as the revision whose stages were run.
    """
    path: Path = options.output
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(path, index=False)
    content = json.dumps(facts(frame, options, device, images) | known, indent=2, ensure_ascii=False) + "\n"
    path.with_suffix(".json").write_text(content, encoding="utf-8")
    print(f"written to {path} and {path.with_suffix('.json')}")


def beside(options: argparse.Namespace, name: str) -> argparse.Namespace:
    """Return the options for a further table, FILE-NAME.csv beside FILE.csv."""
    path: Path = options.output
    return argparse.Namespace(**{**vars(options), "output": path.with_name(f"{path.stem}-{name}{path.suffix}")})


def facts(frame: pd.DataFrame, options: argparse.Namespace, device: torch.device, images: str | None) -> dict[str, Any]:
    """Return what stands beside a table; benchmarks/tables.py names the keys that every such file has."""
    script = Path(sys.argv[0]).resolve()
    where = runtime.describe(device)
    seeds = sorted(frame["seed"].unique().tolist()) if "seed" in frame else [SEED]
    return {
        "question": options.question,
        "commands": [shlex.join(["python", f"{script.parent.name}/{script.name}", *map(portable, sys.argv[1:])])],
        "revision": REVISION,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "seeds": seeds,
        "images": images,
        "hardware": heading(device),
        "n": len(seeds),
        "threads": where["threads"],
        "torch": where["torch"],
        "options": {
            name: portable(str(value)) for name, value in vars(options).items() if name not in ("output", "question")
        },
    }


def portable(text: str) -> str:
    """Return a text in which absolute paths, which say something on this machine only, are shortened to their names.

    >>> portable("--weights=/home/me/resnet.th"), portable("[PosixPath('/a/b.csv')]"), portable("results/a.csv")
    ('--weights=resnet.th', "[PosixPath('b.csv')]", 'results/a.csv')
    """
    return ABSOLUTE.sub(r"\1", text)


def peak(device: torch.device) -> float:
    """Return the multiply-adds a second of a large float32 matrix product, the best of 20."""
    size = 2048 if device.type == "cpu" else 8192
    a, b = torch.rand(2, size, size, device=device)
    return size**3 / min(runtime.seconds(lambda: a @ b, device) for _ in range(20))
