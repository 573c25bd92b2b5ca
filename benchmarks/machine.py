"""What the benchmarks share: the package on the path, their options, and what the machine is and can do at best."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd
import torch

sys.path.append(str(Path(__file__).resolve().parents[1] / "src"))  # behind the standard library, for src/select.py

from deeppatch import runtime  # noqa: E402


def parser(doc: str) -> argparse.ArgumentParser:
    """Return a parser that knows --device and --output; `doc` is the benchmark's docstring."""
    found = argparse.ArgumentParser(description=doc.splitlines()[0])
    table = Path("output", "benchmarks", f"{Path(sys.argv[0]).stem}.csv")
    found.add_argument("--device", choices=["cpu", "cuda"], default=runtime.default_device())
    found.add_argument("--output", type=Path, metavar="FILE", default=table, help=f"CSV (default: {table})")
    return found


def prepared(kind: str) -> torch.device:
    """Return the device of a kind, with threads and seeds set as the stages set them."""
    device = runtime.pick_device(kind)
    runtime.prepare(2021)
    return device


def heading(device: torch.device) -> str:
    """Name hardware, threads and torch."""
    facts = runtime.describe(device)
    return f"{facts['hardware']}, {facts['threads']} threads, torch {facts['torch']}"


def write(frame: pd.DataFrame, options: argparse.Namespace, device: torch.device) -> None:
    """Write a table as CSV to --output, with the options and the machine in columns called run_..."""
    options.output.parent.mkdir(parents=True, exist_ok=True)
    signed(frame, options, device).to_csv(options.output, index=False)
    print(f"written to {options.output}")


def signed(frame: pd.DataFrame, options: argparse.Namespace, device: torch.device) -> pd.DataFrame:
    """Return a table with the options and the machine in columns called run_..."""
    facts = {name: value for name, value in vars(options).items() if name != "output"} | runtime.describe(device)
    return frame.assign(**{f"run_{name}": str(value) for name, value in facts.items()})


def peak(device: torch.device) -> float:
    """Return the multiply-adds a second of a large float32 matrix product, the best of 20."""
    size = 2048 if device.type == "cpu" else 8192
    a, b = torch.rand(2, size, size, device=device)
    return size**3 / min(runtime.seconds(lambda: a @ b, device) for _ in range(20))
