from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from deeppatch import runtime
from deeppatch.distributed import ranks
from deeppatch.errors import UserError
from deeppatch.progress import console_output


@pytest.fixture
def machine(monkeypatch):
    """Put threads, deterministic kernels and random states back as they were."""
    threads, states = torch.get_num_threads(), runtime.random_states()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    monkeypatch.delenv("DEEPPATCH_THREADS", raising=False)
    yield monkeypatch
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
    runtime.restore_random_states(states)


def pretend_cuda(monkeypatch, count: int) -> list[int]:
    """Let torch claim `count` CUDA devices; returns the list of devices that are then made current."""
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


def draws() -> list[float]:
    """One draw of every global random state."""
    return [torch.rand(()).item(), torch.randn(()).item(), random.random(), random.gauss(0, 1),  # noqa: S311
            float(np.random.random()), float(np.random.normal())]  # fmt: skip  # noqa: NPY002


def test_the_cpu_needs_no_cuda(monkeypatch):
    pretend_cuda(monkeypatch, 0)
    assert runtime.default_device() == "cpu"
    assert runtime.pick_device("cpu") == torch.device("cpu")


def test_auto_is_cuda_where_there_is_one(monkeypatch, capsys):
    pretend_cuda(monkeypatch, 0)
    assert runtime.pick_device("auto") == torch.device("cpu")
    with console_output():
        assert runtime.pick_device("auto", 1) == torch.device("cpu")
    assert capsys.readouterr().out.startswith("[info] warning: --gpu 1: there is no CUDA device")
    with pytest.raises(UserError, match="^--gpu 1 can only be used with --device cuda$"):
        runtime.pick_device("cpu", 1)
    chosen = pretend_cuda(monkeypatch, 2)
    assert runtime.pick_device("auto", 1) == torch.device("cuda", 1)
    assert chosen == [1]


def test_bfloat16_can_be_assumed_for_a_while(monkeypatch):
    monkeypatch.setattr(runtime.platform, "machine", lambda: "x86_64")
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    assert not runtime.has_bfloat16(torch.device("cpu"))
    with runtime.assume_bfloat16():
        assert runtime.has_bfloat16(torch.device("cpu"))
    assert not runtime.has_bfloat16(torch.device("cpu"))


def test_asking_for_absent_cuda_names_the_way_out(monkeypatch):
    pretend_cuda(monkeypatch, 0)
    with pytest.raises(UserError, match="--device cpu"):
        runtime.pick_device("cuda")


def test_the_asked_cuda_device_becomes_current(monkeypatch):
    chosen = pretend_cuda(monkeypatch, 2)
    assert runtime.default_device() == "cuda"
    assert runtime.pick_device("cuda", 1) == torch.device("cuda", 1)
    assert chosen == [1]


@pytest.mark.parametrize("gpu", [-1, 2])
def test_an_absent_gpu_is_refused_with_those_there_are(monkeypatch, gpu):
    chosen = pretend_cuda(monkeypatch, 2)
    with pytest.raises(UserError, match=f"--gpu {gpu}.*0 to 1"):
        runtime.pick_device("cuda", gpu)
    assert chosen == []


def test_prepare_seeds_every_global_state(machine):
    runtime.prepare(7)
    first = draws()
    draws()
    runtime.prepare(7)
    assert draws() == first
    runtime.prepare(8)
    assert not set(draws()) & set(first)


def test_prepare_asks_for_deterministic_kernels(machine):
    torch.use_deterministic_algorithms(False)
    runtime.prepare(0)
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark
    assert not torch.utils.deterministic.fill_uninitialized_memory, "which costs a tenth of a training step"


@pytest.mark.parametrize(("asked", "usable", "threads"), [("3", 4, 3), ("0", 4, 4), (None, 2, 2)])
def test_threads_are_as_asked_or_one_per_usable_core(machine, asked, usable, threads):
    machine.setattr(runtime.os, "sched_getaffinity", lambda _pid: set(range(usable)), raising=False)
    if asked is not None:
        machine.setenv("DEEPPATCH_THREADS", asked)
    runtime.prepare(0)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("asked", ["many", "-1", "1.5", ""])
def test_a_thread_count_that_is_none_is_refused(machine, asked):
    machine.setenv("DEEPPATCH_THREADS", asked)
    with pytest.raises(UserError, match="DEEPPATCH_THREADS"):
        runtime.prepare(0)


def stream(*key) -> list[int]:
    return torch.randint(0, 2**31, (8,), generator=runtime.generator(*key)).tolist()


def test_a_generator_depends_on_its_purpose_and_on_nothing_drawn_before():
    first = stream(1, "epoch", 3)
    torch.rand(5)
    assert stream(1, "epoch", 3) == first
    others = [stream(1, "epoch", 4), stream(1, "epoch"), stream(1, "mixed-stream"), stream(1)]
    assert first not in others
    assert len({tuple(other) for other in others}) == len(others)


def test_a_generator_leaves_the_global_state_alone():
    before = torch.get_rng_state()
    stream(1, "epoch", 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_largest_seed_makes_a_generator():
    assert len(stream(2**31 - 1, "epoch", 0)) == 8


def test_random_states_come_back_whole_and_pass_through_a_checkpoint(machine, tmp_path):
    runtime.prepare(5)
    draws()  # leaves half a pair of normal numbers in numpy and in random
    torch.save(runtime.random_states(), tmp_path / "states.pt")
    first = draws()
    draws()
    runtime.restore_random_states(torch.load(tmp_path / "states.pt", weights_only=True))
    assert draws() == first


@pytest.mark.parametrize(("amp", "dtype"), [(False, torch.float32), (True, torch.bfloat16)])
def test_autocast_computes_in_bfloat16_only_when_asked(amp, dtype):
    with runtime.autocast(torch.device("cpu"), amp):
        assert torch.nn.functional.linear(torch.ones(2, 2), torch.ones(2, 2)).dtype == dtype


def test_the_record_names_device_hardware_and_versions():
    facts = runtime.describe(torch.device("cpu"))
    assert facts["device"] == "cpu"
    assert facts["hardware"]
    assert facts["torch"] == torch.__version__
    assert facts["threads"] == torch.get_num_threads()
    assert {"python", "numpy", "torchvision"} <= facts.keys()


def test_a_generator_depends_on_its_seed_and_its_purpose():
    draws = {tuple(torch.rand(3, generator=runtime.generator(seed, "epoch", 0)).tolist()) for seed in (0, 1, 2021)}
    draws |= {tuple(torch.rand(3, generator=runtime.generator(0, "epoch", epoch)).tolist()) for epoch in (1, 2)}
    assert len(draws) == 5


# --- ranks


@pytest.fixture
def pretend_ranks(monkeypatch):
    """`pretend_ranks(own, count)` lets torch claim that this process is one of several, all on this machine."""

    def pretend(own: int, count: int) -> None:
        monkeypatch.setattr(runtime.dist, "is_initialized", lambda: True)
        monkeypatch.setattr(runtime.dist, "get_rank", lambda: own)
        monkeypatch.setattr(runtime.dist, "get_world_size", lambda: count)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(count))
        monkeypatch.setenv("LOCAL_RANK", str(own))

    return pretend


def test_one_process_is_rank_0_of_1_and_has_nobody_to_talk_to(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")  # nothing has been joined, whatever the environment says
    assert (runtime.rank(), runtime.ranks(), runtime.local_ranks()) == (0, 1, 1)
    assert ranks.all_gather("x") == ["x"]
    assert ranks.broadcast_from_rank0(lambda: 3) == 3
    assert ranks.all_reduce_sum(torch.tensor([2.0])).tolist() == [2]
    assert ranks.all_gather_stack(torch.tensor([2.0])).tolist() == [[2]]
    ranks.barrier()


@pytest.mark.parametrize(("cores", "threads"), [(8, 4), (3, 1), (1, 1)])
def test_ranks_of_a_machine_share_its_cores(machine, pretend_ranks, cores, threads):
    machine.setattr(runtime.os, "sched_getaffinity", lambda _pid: set(range(cores)), raising=False)
    pretend_ranks(1, 2)
    runtime.prepare(0)
    assert torch.get_num_threads() == threads
    assert runtime.describe(torch.device("cpu"))["ranks"] == 2


def test_every_rank_takes_the_gpu_of_its_number(monkeypatch, pretend_ranks):
    chosen = pretend_cuda(monkeypatch, 4)
    pretend_ranks(3, 4)
    assert runtime.pick_device("cuda") == torch.device("cuda", 3)
    assert chosen == [3]
    with pytest.raises(UserError, match="leave --gpu out"):
        runtime.pick_device("cuda", 1)
    pretend_ranks(3, 5)
    with pytest.raises(UserError, match="there are 4 CUDA devices"):
        runtime.pick_device("cuda")


@pytest.mark.parametrize(("count", "of"), [(256, 2), (9, 2), (1, 2), (0, 3), (10, 4), (2, 5)])
def test_parts_are_nearly_equal_and_together_everything(count, of):
    parts = [list(range(count))[ranks.shard_slice(count, which, of)] for which in range(of)]
    assert sum(parts, []) == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


FILTERS = {"conv1": range(16), "conv2": [5, 2, 9], "conv3": range(40), "conv4": [0]}
COSTS = {"conv1": 7, "conv2": 90, "conv3": 3, "conv4": 0}


@pytest.mark.parametrize("parts", [1, 2, 3, 5, 80])
def test_filters_are_shared_out_by_cost(parts):
    shares = ranks.distribute_by_cost(FILTERS, COSTS, parts)
    assert len(shares) == parts
    for name, channels in FILTERS.items():
        dealt = [share.get(name, []) for share in shares]
        assert sorted(sum(dealt, [])) == sorted(channels), "each filter once"
        assert all(row == [channel for channel in channels if channel in row] for row in dealt), "in their order"
    assert all(list(share) == [name for name in FILTERS if name in share] for share in shares)
    loads = [sum(COSTS[name] * len(row) for name, row in share.items()) for share in shares]
    whole = sum(COSTS[name] * len(row) for name, row in FILTERS.items())
    assert sum(loads) == whole
    assert max(loads) <= 4 / 3 * max(whole / parts, 90), "longest processing time first"
    assert ranks.distribute_by_cost(FILTERS, COSTS, parts) == shares


def test_sharing_out_can_go_on_with_what_is_left():
    assert ranks.distribute_by_cost({}, {}, 3) == [{}, {}, {}]
    assert ranks.distribute_by_cost({"a": [4]}, {"a": 1}, 2) == [{"a": [4]}, {}]
