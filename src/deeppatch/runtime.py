"""Device, threads, precision, random numbers and ranks of a run; the only module that queries CUDA."""

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
from torch import nn

from deeppatch.errors import UserError
from deeppatch.progress import info

Value = TypeVar("Value")
THREADS_PER_CORE = 4  # at most
BFLOAT16_ASSUMED: ContextVar[bool] = ContextVar("BFLOAT16_ASSUMED", default=False)


def default_device() -> str:
    """Return the default device: `cuda` if there is one, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def pick_device(kind: str, gpu: int = 0) -> torch.device:
    """Return the device for `kind` (`cpu`, `cuda`, or `auto`: CUDA if there is one) and GPU index `gpu`.

    Under `auto` an index on a machine without CUDA is a warning, because published commands have one. With several
    ranks, each uses the GPU of its local rank.

    Raises:
        UserError: When there is no such device.
    """
    if kind == "auto":
        kind = default_device()
        if kind == "cpu" and gpu:
            info(f"warning: --gpu {gpu}: there is no CUDA device; the CPU computes (--device cuda insists on one)")
            gpu = 0
    if kind == "cpu" and gpu:
        raise UserError(f"--gpu {gpu} can only be used with --device cuda")
    if kind == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("--device cuda: this machine or this torch build has no CUDA device; use --device cpu")
    count = torch.cuda.device_count()
    if ranks() > 1:
        if gpu:
            raise UserError(f"--gpu {gpu}: under torchrun every process takes a GPU of its own; leave --gpu out")
        if (processes := local_ranks()) > count:
            raise UserError(f"--nproc-per-node {processes}: there are {count} CUDA devices; start one process for each")
        gpu = int(os.environ["LOCAL_RANK"])
    if not 0 <= gpu < count:
        raise UserError(f"--gpu {gpu}: there are {count} CUDA devices; choose 0 to {count - 1}")
    torch.cuda.set_device(gpu)
    return torch.device("cuda", gpu)


def prepare(seed: int) -> None:
    """Set the number of threads, deterministic kernels and all seeds.

    The number of threads is that of the environment variable DEEPPATCH_THREADS; 0, the default, is one per usable core,
    divided among the ranks of a machine.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = os.environ.get("DEEPPATCH_THREADS", "0")
    if not (threads.isascii() and threads.isdecimal()):
        raise UserError(f"DEEPPATCH_THREADS={threads}: give a whole number of threads, 0 for one per core")
    most = THREADS_PER_CORE * (os.cpu_count() or 1)
    if len(threads.lstrip("0")) > 9 or int(threads) > most:
        raise UserError(f"DEEPPATCH_THREADS={threads[:12]}: give at most {most}, four for each core of this machine")
    torch.set_num_threads(int(threads) or max(1, cores // local_ranks()))
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    # float32 means float32: a sample's logits must not depend on the kernel that its batch size selects
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    # with the line above torch also fills new tensors, which takes a tenth of a training step; no operation
    # here reads uninitialised memory
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  libraries that draw from the global state must repeat too
    torch.manual_seed(seed)


def generator(seed: int, *purpose: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator whose stream depends only on `seed` and `purpose`, not on numbers drawn before."""
    # hashed, because generators on the CPU use only the low 32 bits of a seed
    digest = hashlib.sha256("/".join(map(str, (seed, *purpose))).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def numpy_generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """Return a NumPy generator whose stream depends only on `seed` and `purpose`, not on numbers drawn before."""
    digest = hashlib.sha256("/".join(map(str, (seed, *purpose))).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def autocast(device: torch.device, amp: bool) -> AbstractContextManager[Any]:
    """Return the context for forward passes: bfloat16 with `amp`, float32 otherwise."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=amp)


@contextmanager
def assume_bfloat16() -> Iterator[None]:
    """Let `has_bfloat16` return True for any device within the block, to test the effect of bfloat16."""
    token = BFLOAT16_ASSUMED.set(True)
    try:
        yield
    finally:
        BFLOAT16_ASSUMED.reset(token)


def has_bfloat16(device: torch.device) -> bool:
    """Return whether a device has bfloat16 arithmetic; without it, float32 is faster."""
    if BFLOAT16_ASSUMED.get():
        return True
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    queries = [getattr(torch.cpu, f"_is_{kind}_supported", None) for kind in ("avx512_bf16", "amx_tile")]
    return platform.machine() not in ("x86_64", "AMD64") or any(query() for query in queries if query)


def median_seconds(call: Callable[[], object], device: torch.device, *, repeats: int = 200, warm_up: int = 10) -> float:
    """Return the median time of a call in seconds, device work included, after some calls to warm up."""
    return statistics.median([seconds(call, device) for _ in range(warm_up + repeats)][warm_up:])


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Return the time of one call in seconds, device work included."""
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def rank() -> int:
    """Return the rank of this process, from 0; only rank 0 writes files and prints."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def ranks() -> int:
    """Return the number of processes of this run: 1, except under torchrun within `launch.joined_ranks`."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def local_ranks() -> int:
    """Return the number of ranks on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if ranks() > 1 else 1


@contextmanager
def single_threaded_workers(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of `workers` threads whose tensor operations are single-threaded.

    Within the block the operations of this thread are single-threaded too. On an error, pending tasks are cancelled.
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
    """Return all global random states in a form that `torch.load(weights_only=True)` can load."""
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": repr(random.getstate()),
        "numpy": repr([v.tolist() if isinstance(v, np.ndarray) else v for v in np.random.get_state()]),  # noqa: NPY002
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()  # of the current device, because a resumed run may see others
    return states


def restore_random_states(states: dict[str, Any]) -> None:
    """Restore the global random states that `random_states` returned."""
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
    """Return the name of the CPU; on Linux Python knows only its family, but the kernel its name."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


@contextmanager
def explained_single_images() -> Iterator[None]:
    """Raise UserError where a batch of one image has too few values for a batch normalisation in training."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            "a batch has a single image (the last of an epoch, as a rule), and a batch normalisation of this network "
            "reads maps of one pixel, of which it has no statistics; choose another batch size or larger images"
        ) from error


def to_channels_last(module: nn.Module) -> None:
    """Move the weights of convolutions to the memory layout that they like best, in place.

    `Module.to` would do so for every tensor of four dimensions, and fails at those of five that networks may hold.
    """
    for each in module.modules():
        for values in (each._parameters, each._buffers):
            for tensor in values.values():
                if tensor is not None and tensor.ndim == 4:
                    tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
