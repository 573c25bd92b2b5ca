"""The machine a run uses: device, threads, precision, seeds, ranks; the only file that asks about CUDA."""

from __future__ import annotations

import ast
import hashlib
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
import torchvision

from deeppatch.errors import UserError

Value = TypeVar("Value")
BFLOAT16_ASSUMED: ContextVar[bool] = ContextVar("BFLOAT16_ASSUMED", default=False)


def default_device() -> str:
    """Name the device that is used when none is asked for: `cuda` where there is one, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def pick_device(kind: str, gpu: int = 0) -> torch.device:
    """Return the device for `kind` (`cpu`, `cuda`, or `auto`: CUDA where there is one) and GPU index `gpu`.

    Where several ranks run, each takes the GPU of its number on its machine.

    Raises:
        UserError: The device is not there.
    """
    kind = default_device() if kind == "auto" else kind
    if kind == "cpu" and gpu:
        raise UserError(f"--gpu {gpu} goes with --device cuda only")
    if kind == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("--device cuda: this machine or this torch build has no CUDA device; use --device cpu")
    count = torch.cuda.device_count()
    if ranks() > 1:
        if gpu:
            raise UserError(f"--gpu {gpu}: under torchrun every process takes a GPU of its own; leave --gpu out")
        if (here := local_ranks()) > count:
            raise UserError(f"--nproc-per-node {here}: there are {count} CUDA devices; start one process for each")
        gpu = int(os.environ["LOCAL_RANK"])
    if not 0 <= gpu < count:
        raise UserError(f"--gpu {gpu}: there are {count} CUDA devices; choose 0 to {count - 1}")
    torch.cuda.set_device(gpu)
    return torch.device("cuda", gpu)


def prepare(seed: int) -> None:
    """Set threads, deterministic kernels and all seeds.

    Threads are those of the environment's DEEPPATCH_THREADS; 0 is one per usable core, shared out among the ranks of a
    machine.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("DEEPPATCH_THREADS", "0")
    if not asked.isdecimal():
        raise UserError(f"DEEPPATCH_THREADS={asked}: give a whole number of threads, 0 for one per core")
    torch.set_num_threads(int(asked) or max(1, cores // local_ranks()))
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    # float32 means float32: a sample's logits must not depend on the kernel that its batch size selects
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    # with the line above torch fills every new tensor before it is written to, a tenth of a training step; no operation
    # here reads what it has not written
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  libraries that draw from the global state must repeat too
    torch.manual_seed(seed)


def generator(seed: int, *purpose: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator whose stream depends on `seed` and on what it is for, and on nothing drawn before."""
    # hashed, because generators on the CPU heed the low 32 bits of a seed alone
    digest = hashlib.sha256("/".join(map(str, (seed, *purpose))).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def entropy(seed: int, *purpose: str | int) -> np.random.Generator:
    """Return a NumPy generator whose stream depends on `seed` and on what it is for, and on nothing drawn before."""
    digest = hashlib.sha256("/".join(map(str, (seed, *purpose))).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def autocast(device: torch.device, amp: bool) -> AbstractContextManager[Any]:
    """Return the context in which forward passes run: bf16 where `amp` is set, float32 otherwise."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=amp)


@contextmanager
def assume_bfloat16() -> Iterator[None]:
    """Let `has_bfloat16` say yes of any device within a block, to see what bfloat16 changes."""
    token = BFLOAT16_ASSUMED.set(True)
    try:
        yield
    finally:
        BFLOAT16_ASSUMED.reset(token)


def has_bfloat16(device: torch.device) -> bool:
    """Tell whether a device computes in bfloat16; one that does not is faster in float32."""
    if BFLOAT16_ASSUMED.get():
        return True
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    asked = [getattr(torch.cpu, f"_is_{kind}_supported", None) for kind in ("avx512_bf16", "amx_tile")]
    return platform.machine() not in ("x86_64", "AMD64") or any(ask() for ask in asked if ask)


def median_seconds(call: Callable[[], object], device: torch.device, *, repeats: int = 200) -> float:
    """Return the median time of a call in seconds, after ten calls that do not count; work on the device included."""
    return statistics.median([seconds(call, device) for _ in range(10 + repeats)][10:])


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Return the time of one call in seconds, work on the device included."""
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def rank() -> int:
    """Return the number of this process among those of the run, from 0; rank 0 writes and speaks for all."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def ranks() -> int:
    """Return how many processes share this run: 1 but under torchrun, within `launch.together`."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def local_ranks() -> int:
    """Return how many of the ranks run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if ranks() > 1 else 1


@contextmanager
def one_thread_each(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of `workers` threads whose tensor operations run on one thread each; what waits is dropped on error.

    Within the block this thread's operations run on one, too.
    """
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    try:
        torch.set_num_threads(1)
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def random_states() -> dict[str, Any]:
    """Collect every global random state in a form that `torch.load(weights_only=True)` reads back."""
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": repr(random.getstate()),
        "numpy": repr([v.tolist() if isinstance(v, np.ndarray) else v for v in np.random.get_state()]),  # noqa: NPY002
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()  # of the device in use: a resumed run may see others
    return states


def restore_random_states(states: dict[str, Any]) -> None:
    """Set every global random state to what `random_states` collected."""
    torch.set_rng_state(states["torch"])
    random.setstate(ast.literal_eval(states["python"]))
    np.random.set_state(tuple(ast.literal_eval(states["numpy"])))  # noqa: NPY002
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def describe(device: torch.device) -> dict[str, Any]:
    """Describe device and versions for a run's record."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "device": str(device),
        "hardware": name,
        "threads": torch.get_num_threads(),
        "ranks": ranks(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
    }


def _processor() -> str:
    """Name the CPU; Python does not know more of it than its family on Linux, where the kernel does."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
