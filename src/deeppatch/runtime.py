"""The machine a run uses: device, threads, precision, seeds and random states; the only file that asks about CUDA."""

from __future__ import annotations

import ast
import hashlib
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
import torchvision

from deeppatch.errors import UserError


def default_device() -> str:
    """Name the device that is used when none is asked for: `cuda` where there is one, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def pick_device(kind: str, gpu: int = 0) -> torch.device:
    """Return the device for `kind` (`cpu` or `cuda`) and GPU index `gpu`; UserError when it is not there."""
    if kind == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("--device cuda: this machine or this torch build has no CUDA device; use --device cpu")
    count = torch.cuda.device_count()
    if not 0 <= gpu < count:
        raise UserError(f"--gpu {gpu}: there are {count} CUDA devices; choose 0 to {count - 1}")
    torch.cuda.set_device(gpu)
    return torch.device("cuda", gpu)


def prepare(seed: int) -> None:
    """Set threads (environment DEEPPATCH_THREADS, 0 = one per usable core), deterministic kernels and all seeds."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("DEEPPATCH_THREADS", "0")
    if not asked.isdecimal():
        raise UserError(f"DEEPPATCH_THREADS={asked}: give a whole number of threads, 0 for one per core")
    torch.set_num_threads(int(asked) or cores)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    # float32 means float32: a sample's logits must not depend on the kernel that its batch size selects
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    # a debugging aid that comes with it, and fills each output with NaN before it is computed: a tenth of inference
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  libraries that draw from the global state must repeat too
    torch.manual_seed(seed)


def generator(seed: int, *purpose: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator whose stream depends on `seed` and on what it is for, and on nothing drawn before."""
    # hashed, because generators on the CPU heed the low 32 bits of a seed alone
    digest = hashlib.sha256("/".join(map(str, (seed, *purpose))).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def autocast(device: torch.device, amp: bool) -> AbstractContextManager[Any]:
    """Return the context in which forward passes run: bf16 where `amp` is set, float32 otherwise."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=amp)


def median_seconds(call: Callable[[], object], device: torch.device, *, repeats: int = 200) -> float:
    """Return the median time of a call in seconds, after ten calls that do not count; work on the device included."""
    times = []
    for _ in range(10 + repeats):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[10:])


def random_states() -> dict[str, Any]:
    """Collect every global random state in a form that `torch.load(weights_only=True)` reads back."""
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": repr(random.getstate()),
        "numpy": repr([v.tolist() if isinstance(v, np.ndarray) else v for v in np.random.get_state()]),  # noqa: NPY002
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def restore_random_states(states: dict[str, Any]) -> None:
    """Set every global random state to what `random_states` collected."""

    torch.set_rng_state(states["torch"])
    random.setstate(ast.literal_eval(states["python"]))
    np.random.set_state(tuple(ast.literal_eval(states["numpy"])))  # noqa: NPY002
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])


def describe(device: torch.device) -> dict[str, Any]:
    """Describe device and versions for a run's record."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": str(device),
        "hardware": name,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
    }
