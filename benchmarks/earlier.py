"""Epochs of an earlier revision, for training.py: a process of its own takes turns with that, and is idle between.

What both processes do alike imports the package when it is called, because that is the package of the one or of the
other revision.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
CLASSES, SIZE = 10, 32
READY = "ready"


def inputs(options: argparse.Namespace, device: torch.device) -> tuple[Any, Any]:
    """Return random images, `options.batches` batches of them, and a network with random weights, on the device."""
    from deeppatch import runtime
    from deeppatch.data.sources import Images
    from deeppatch.zoo.architectures import ARCHITECTURES
    from deeppatch.zoo.classifier import Classifier

    draw = runtime.generator(2021, "benchmark")
    count = options.batch_size * options.batches
    pixels = torch.randint(0, 256, (count, 3, SIZE, SIZE), generator=draw, dtype=torch.uint8)
    images = Images(pixels, torch.randint(0, CLASSES, (count,), generator=draw)).to(device)
    base = Classifier(ARCHITECTURES[options.model](CLASSES), [0.5] * 3, [0.25] * 3)
    return images, base.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def second_epoch_s(epoch: Callable[[], object], device: torch.device, of_processor: bool) -> float:
    """Return the seconds of the second of two epochs, on the wall or of the processor.

    The first one gets its memory from the system, which a training does once.
    """
    from deeppatch import runtime

    epoch()
    start = time.process_time()
    on_wall = runtime.seconds(epoch, device)
    return time.process_time() - start if of_processor else on_wall


@contextmanager
def epochs_of(revision: str, options: dict[str, Any]) -> Iterator[Callable[[str], float]]:
    """Yield a function that trains an epoch by a method, as an earlier revision does it, and returns its seconds.

    Args:
        revision: What git calls it; it must have benchmarks/training.py, with `whole_epoch` and `prepared`.
        options: Those of training.py, and `device`.
    """
    pack = ["git", "archive", revision, "src", "benchmarks"]
    packed = subprocess.run(pack, cwd=HERE.parent, stdout=subprocess.PIPE, check=False)  # noqa: S603
    if packed.returncode:
        raise SystemExit(f"--earlier {revision}: git knows no such revision, or not its files")
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
            archive.extractall(folder, filter="data")
        command = [sys.executable, "-c", "import earlier; earlier.answer()", folder, json.dumps(options)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=HERE) as process:  # noqa: S603
            assert process.stdin is not None
            assert process.stdout is not None
            requests, answers = process.stdin, process.stdout

            def line() -> str:
                found = answers.readline().strip()
                if not found:
                    raise SystemExit(f"--earlier {revision}: the process of that revision ended; its message is above")
                return found

            def seconds(method: str) -> float:
                print(method, file=requests, flush=True)
                return float(line())

            while line() != READY:
                pass
            yield seconds


def answer() -> None:
    """Answer each line of standard input, a method, with the seconds of an epoch as the revision in a folder trains it.

    Folder and options are the arguments of the process. What the revision itself prints goes to standard error.
    """
    folder, options = Path(sys.argv[1]), argparse.Namespace(**json.loads(sys.argv[2]))
    answers, sys.stdout = sys.stdout, sys.stderr
    sys.path[:1] = [str(folder / "benchmarks"), str(folder / "src")]  # in front of this revision's, installed or not
    import machine
    import training

    assert str(folder) in training.attach.__code__.co_filename, "the package is not that of the revision"
    device = machine.prepared(options.device)
    images, base = inputs(options, device)
    epochs: dict[str, Callable[[], object]] = {}
    print(READY, file=answers, flush=True)
    for line in sys.stdin:
        method = line.strip()
        if method not in epochs:
            epochs[method] = training.whole_epoch(method, base, images, options)
        print(second_epoch_s(epochs[method], device, options.processor_time), file=answers, flush=True)
