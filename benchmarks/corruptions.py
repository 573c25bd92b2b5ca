"""Time the 19 common corruptions on whole batches against their plain definitions, one image at a time.

python benchmarks/corruptions.py [--size 32] [--images 512] [--rounds 3] [--device cpu|cuda] [--output FILE]

The plain definitions are those of tests/data/corruptions/plain.py, in numpy, scipy and Pillow, with numpy's random
numbers; fog has its strided form here. Times are the best of the rounds, in microseconds for an image, the mean of five
severities: processor time with one thread, and for ours the time on the clock with two threads too. Where the package
imagecorruptions-imaug is installed, it is timed beside them; it has ImageNet's constants at every size. Sums leave out
JPEG (the same codec for all) and glass, and with the plain definitions spatter, of which one is a loop over pixels. The
last columns say how many times as long as ours the others take. Beside the table, FILE.json says how it was measured.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine
import numpy as np
import pandas as pd
import torch

from deeppatch import runtime
from deeppatch.data.corruption_names import COMMON, SEVERITIES
from deeppatch.data.corruptions import degrade
from deeppatch.data.corruptions.constants import Row, constants
from deeppatch.data.corruptions.frost import texture_side, textures

PLAIN = Path(__file__).resolve().parents[1] / "tests" / "data" / "corruptions" / "plain.py"
OUTSIDE = ("jpeg_compression", "glass_blur")  # of the sums


def main() -> None:
    """Print a table, and write it as CSV, with a JSON file beside it."""
    options = parser().parse_args()
    device = machine.prepared(options.device)
    pixels = pictures(options.images, options.size)
    rows = [measured(name, pixels, options, device) for name in COMMON]
    frame = with_ratios(pd.concat([pd.DataFrame(rows), sums(pd.DataFrame(rows))], ignore_index=True))
    numbers = frame.columns.drop("corruption")
    frame[numbers] = frame[numbers].astype(float).round(1)
    print(f"{machine.heading(device)}; {options.images} images of {options.size} pixels")
    print(frame.to_string(index=False))
    images = f"{options.images} random pictures of {options.size} pixels, {options.plain} of them one by one"
    note = f"the best of {options.rounds} rounds; processor time on one thread, but the column of two threads"
    machine.write(frame, options, device, images=images, note=note)


def sums(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a row of sums for the package, and one for the plain definitions, which leaves spatter out too."""
    rows = []
    for outside, without in ((OUTSIDE, "plain_us"), ((*OUTSIDE, "spatter"), "imagecorruptions_us")):
        inside = frame[~frame.corruption.isin(outside)].drop(columns=without)
        total = inside.drop(columns="corruption").sum(min_count=len(inside))
        rows.append({"corruption": f"sum of {len(inside)}", **total})
    return pd.DataFrame(rows)


def with_ratios(frame: pd.DataFrame) -> pd.DataFrame:
    """Add how many times as long as ours the others take: on one thread, and against ours on two."""
    ratios = {
        "times_plain": frame.plain_us / frame.ours_us,
        "times_package": frame.imagecorruptions_us / frame.ours_us,
        "times_package_two_threads": frame.imagecorruptions_us / frame.ours_two_threads_us,
    }
    return frame.assign(**ratios)


def parser() -> argparse.ArgumentParser:
    """Return the parser of this benchmark's options."""
    found = machine.parser(__doc__ or "")
    found.add_argument("--size", type=int, default=32, metavar="N", help="pixels of a side (default: 32)")
    found.add_argument("--images", type=int, default=512, metavar="N", help="images of a batch (default: 512)")
    found.add_argument("--plain", type=int, default=20, metavar="N", help="images that are timed one by one")
    found.add_argument("--rounds", type=int, default=3, metavar="N", help="the best of so many (default: 3)")
    return found


def pictures(count: int, size: int) -> torch.Tensor:
    """Return smooth random pictures with some detail, uint8 (N, 3, S, S)."""
    draw = runtime.generator(2021, "benchmark")
    smooth = torch.rand(count, 3, 6, 6, generator=draw)
    smooth = torch.nn.functional.interpolate(smooth, size=(size, size), mode="bilinear", align_corners=True)
    detail = 0.05 * torch.randn(count, 3, size, size, generator=draw)
    return ((smooth + detail).clamp(0, 1) * 255).to(torch.uint8)


def measured(
    name: str, pixels: torch.Tensor, options: argparse.Namespace, device: torch.device
) -> dict[str, str | float | None]:
    """Return one row: microseconds for an image."""
    on_device, size, few = pixels.to(device), options.size, pixels[: options.plain]
    images = list(few.permute(0, 2, 3, 1).numpy())
    times: dict[str, list[float]] = {"ours": [], "two": [], "plain": [], "package": []}
    package = imagecorruptions()
    for severity in SEVERITIES:
        row = constants(name, size, size)[severity - 1]

        def ours(severity: int = severity) -> None:
            degrade(on_device, name, severity)
            runtime.seconds(lambda: None, device)

        def plain(row: Row = row) -> None:
            for image in images:
                one_by_one(name, image, row)

        def packaged(severity: int = severity) -> None:
            for image in images:
                package(image, corruption_name=name, severity=severity)

        torch.set_num_threads(1)
        clock = time.process_time if device.type == "cpu" else time.perf_counter
        times["ours"].append(best(ours, options.rounds, clock) / len(pixels))
        times["plain"].append(best(plain, options.rounds, time.process_time) / len(images))
        if package:
            times["package"].append(best(packaged, options.rounds, time.process_time) / len(images))
        torch.set_num_threads(2)
        times["two"].append(best(ours, options.rounds, time.perf_counter) / len(pixels))
    mean = {kind: 1e6 * sum(found) / len(found) if found else None for kind, found in times.items()}
    return {
        "corruption": name, "plain_us": mean["plain"], "ours_us": mean["ours"], "ours_two_threads_us": mean["two"],
        "imagecorruptions_us": mean["package"],
    }  # fmt: skip


def best(call: Callable[[], None], rounds: int, clock: Callable[[], float]) -> float:
    """Return the least time of a call, after one to warm up."""
    call()
    found = []
    for _ in range(rounds):
        start = clock()
        call()
        found.append(clock() - start)
    return min(found)


def imagecorruptions() -> Any:
    """Return the function of the package of this name, or None where it is not installed."""
    if importlib.util.find_spec("imagecorruptions") is None:
        return None
    return importlib.import_module("imagecorruptions").corrupt


def definitions() -> Any:
    """Return the module of plain definitions, which is a file of the tests."""
    spec = importlib.util.spec_from_file_location("plain", PLAIN)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


plain = definitions()
rng = np.random.default_rng(2021)


def one_by_one(name: str, image: np.ndarray, row: Row) -> np.ndarray:
    """Degrade one image by its plain definition, the random numbers drawn here."""
    height, width = image.shape[:2]
    degrade_one = getattr(plain, name)
    if name in ("gaussian_noise", "speckle_noise"):
        return degrade_one(image, row, rng.standard_normal(image.shape))
    if name == "impulse_noise":
        return degrade_one(image, row, rng.random(image.shape))
    if name == "shot_noise":
        return degrade_one(image, row, rng)
    if name == "glass_blur":
        moves = rng.integers(-int(row[1]), int(row[1]), (int(row[2]), 2, height, width))
        return degrade_one(image, row, moves)
    if name == "motion_blur":
        return degrade_one(image, row, rng.uniform(-45, 45))
    if name in ("snow", "spatter"):
        noise = (rng.standard_normal((height, width, 1)),)
        return degrade_one(image, row, *noise, *((rng.uniform(-135, -45),) if name == "snow" else ()))
    if name == "frost":
        side = texture_side(height, width)
        top, left = rng.integers(0, side - height), rng.integers(0, side - width)
        texture = textures(side).reshape(5, side, side, 3)[rng.integers(5)]
        return degrade_one(image, row, texture[top : top + height, left : left + width])
    if name == "fog":
        return degrade_one(image, row, None, plasma)
    if name == "elastic_transform":
        return degrade_one(image, row, rng.uniform(-row[2], row[2], (3, 2)), rng.uniform(-1, 1, (2, height, width)))
    return degrade_one(image, row)


def plasma(_values: None, side: int, decay: float) -> np.ndarray:
    """Return a plasma map by numpy's strided arrays, a level at a time."""
    clouds, step, roughness = np.zeros((side, side)), side, 100.0
    while step >= 2:
        half = step // 2

        def rough(summed: np.ndarray) -> np.ndarray:
            return summed / 4 + roughness**2 * rng.uniform(-1, 1, summed.shape)  # noqa: B023

        corners = clouds[::step, ::step]
        summed = corners + np.roll(corners, -1, 0)
        centres = clouds[half::step, half::step] = rough(summed + np.roll(summed, -1, 1))
        clouds[::step, half::step] = rough(centres + np.roll(centres, 1, 0) + corners + np.roll(corners, -1, 1))
        clouds[half::step, ::step] = rough(centres + np.roll(centres, 1, 1) + corners + np.roll(corners, -1, 0))
        step, roughness = half, roughness / decay
    clouds -= clouds.min()
    return clouds / clouds.max()


if __name__ == "__main__":
    main()
