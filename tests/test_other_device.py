"""Every public function on a device other than that of the data: it moves them, and gives what the processor gives.

The other device is simulated: tensors that lie on it compute on the processor, and refuse to meet others, so that this
shows on a machine without an accelerator. The rules are CUDA's: tensors of one operation lie on one device, except
numbers (0 dimensions), the source of a copy, and indices; NumPy reads tensors on the processor only. The device goes by
the name `lazy`, the one of PyTorch's that needs no driver and whose backward pass runs in the calling thread. Where
there is a CUDA device, the same calls run on it, too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import deeppatch as dp
from deeppatch import runtime
from deeppatch.adapt.cotta import CottaSettings
from deeppatch.adapt.measure import run_streams
from deeppatch.adapt.names import STREAMS
from deeppatch.artifacts import tensors_from_bytes
from deeppatch.localization.ranking import Ranking
from deeppatch.modular.gradient_search import GradientSearch
from deeppatch.retrain.apricot import apricot
from deeppatch.retrain.augmix import augmix
from deeppatch.retrain.bank_fitting import fit_bank
from deeppatch.retrain.gini import gini
from deeppatch.retrain.interpolate import interpolate
from deeppatch.retrain.norms import norms
from deeppatch.retrain.robot import robot
from deeppatch.retrain.sensei import sensei
from deeppatch.retrain.surgical import surgical

METHODS = ["perfloss", "featswap", "taylor", "activation"]
DEVICE = torch.device("lazy", 0)
ATEN = torch.ops.aten
NUMBERS = {ATEN._local_scalar_dense.default, ATEN.equal.default, ATEN.is_same_size.default}
INDEXED = {ATEN.index.Tensor, ATEN.index_put_.default, ATEN.index_put.default, ATEN._index_put_impl_.default}


class OnDevice(torch.Tensor):
    """A tensor on the simulated device; `inner` has its values."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> OnDevice:
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, device=DEVICE, **layout)

    def __init__(self, inner: torch.Tensor) -> None:
        self.inner = inner

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"OnDevice({self.inner})"

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("can't convert a tensor on the simulated device to NumPy; copy it to the processor first")

    def tolist(self) -> Any:
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(operation, args, kwargs or {})


class DeviceGenerator(torch.Generator):
    """A generator of the simulated device."""


class SimulatedDevice(TorchDispatchMode):
    """Sends every operation within the block through the rules of this module."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(operation, args, kwargs or {})


def computed(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what an operation gives on the device of its tensors, or of its argument `device`."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    named = kwargs.get("device")
    here = any(isinstance(each, OnDevice) for each in tensors)
    there = here if named is None else torch.device(named).type == DEVICE.type
    if operation not in (ATEN._to_copy.default, ATEN.copy_.default):
        refuse_mixtures(operation, args, tensors)
    inner = {key: torch.device("cpu") if key == "device" else value for key, value in kwargs.items()}
    result = operation(*tree_map(unwrapped, args), **tree_map(unwrapped, inner))
    if operation._schema.name.endswith("_") and isinstance(args[0], torch.Tensor):
        return args[0]
    if "out" in kwargs:
        return kwargs["out"]
    if not there or operation in NUMBERS:
        return result
    return tree_map(lambda each: OnDevice(each) if isinstance(each, torch.Tensor) else each, result)


def refuse_mixtures(operation: Any, args: tuple[Any, ...], tensors: list[torch.Tensor]) -> None:
    """Raise the error that CUDA gives when the tensors of an operation are on several devices."""
    if operation in INDEXED and isinstance(args[0], OnDevice):
        tensors = [each for each in tree_leaves((args[0], args[2:])) if isinstance(each, torch.Tensor)]
    places = {type(each) is OnDevice for each in tensors if each.ndim or isinstance(each, OnDevice)}
    if len(places) > 1:
        raise RuntimeError(f"{operation}: Expected all tensors to be on the same device")


def unwrapped(leaf: Any) -> Any:
    """Return the values of a tensor on the device; anything else as it is."""
    return leaf.inner if isinstance(leaf, OnDevice) else leaf


@contextmanager
def simulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """Yield the simulated device; within the block the package draws random numbers on it, and has no autocast."""
    plain: Callable[..., torch.Generator] = runtime.generator

    def generator(seed: int, *purpose: str | int, device: torch.device | str = "cpu") -> torch.Generator:
        drawn = plain(seed, *purpose)
        if torch.device(device).type != DEVICE.type:
            return drawn
        own = DeviceGenerator()
        own.set_state(drawn.get_state())
        return own

    make = torch.tensor  # allocates before it dispatches

    def tensor(values: Any, *, device: Any = "cpu", **options: Any) -> Tensor:
        return make(values, **options).to(device)

    monkeypatch.setattr(torch, "tensor", tensor)
    for name in ("__enter__", "__exit__"):  # a wrapper cannot be an inference tensor
        monkeypatch.setattr(torch.inference_mode, name, getattr(torch.no_grad, name))
    monkeypatch.setattr(runtime, "generator", generator)
    monkeypatch.setattr(torch, "autocast", lambda device_type, **options: nullcontext())
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # the data of a wrapper cannot be replaced
    try:
        with SimulatedDevice():
            yield DEVICE
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


def tensors(count: int) -> tuple[Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(count)
    return torch.rand((count, 3, 14, 18), generator=drawn), torch.arange(count) % 3


def salt(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Add noise; PyTorch needs a generator of the device where the noise lands."""
    assert isinstance(generator, DeviceGenerator) == isinstance(pixels, OnDevice)
    return pixels + 0.3 * torch.randn(pixels.shape, generator=generator, device=pixels.device)


def repair(model: nn.Module, data: dp.Data) -> dict[str, Any]:
    patch = dp.train_patch(model, data, salt, {"0": [1, 4], "3": [0]}, epochs=1)
    switched = dp.fit_switch(model, patch, data, salt)
    return {
        "patch": tensors_from_bytes(patch.to_bytes(), Path("patch"))[0],
        "table": dp.evaluate({"a": model, "b": switched}, data, salt),
    }


def saved(model: nn.Module, data: dp.Data) -> Any:
    """Save a switched network and read it back into the model."""
    patch = dp.train_patch(model, data, salt, {"0": [1]}, epochs=1)
    with tempfile.TemporaryDirectory() as folder:
        path = dp.save(dp.fit_switch(model, patch, data, salt), Path(folder) / "switched.safetensors")
        return dp.load(path, model)(data.example.to(next(model.parameters()).device))


def ratio(model: nn.Module, data: dp.Data) -> float:
    def train(channels: dict[str, list[int]]) -> nn.Module:
        return dp.train_patch(model, data, salt, channels, epochs=1).apply(model)

    return dp.estimate_ratio(model, data, salt, train=train, ratios=(0.2, 0.5)).ratio


def between(model: nn.Module, data: dp.Data) -> dict[str, Any]:
    """Half of the way between the model and one that was fine-tuned."""
    tuned = norms(model, data, salt, epochs=0)
    found = interpolate(model, tuned, data, salt, shares=(0, 0.5), statistics="again", max_clean_drop=100)
    return {"state": found.state_dict(), "curve": found.tables["curve.csv"]}


def banked(model: nn.Module, data: dp.Data) -> Any:
    """Save a bank of statistics, read it back, and let it answer."""
    with tempfile.TemporaryDirectory() as folder:
        path = dp.save(fit_bank(model, data, salt), Path(folder) / "bank.safetensors")
        return dp.load(path).apply(model)(data.example.to(next(model.parameters()).device))


def split(model: nn.Module, data: dp.Data) -> dict[str, Any]:
    modules = dp.split_into_modules(model, data, method=GradientSearch(epochs=1))
    joined = dp.join_module(model, modules, model, 0, data)
    answers = joined(data.example.to(next(model.parameters()).device))
    return {"modules": tensors_from_bytes(modules.to_bytes(), Path("modules"))[0], "answers": answers}


def label(model: nn.Module, data: dp.Data, method: str) -> Any:
    pool = (tensors(24)[0] * 255).byte()
    chosen = dp.choose_labels(model, pool, data, budget=4, method=method, oracle=tensors(24)[1], views=2)
    learned = dp.relearn(model, data, pool, chosen, epochs=1)
    return {name: value.detach().cpu() for name, value in learned.state_dict().items()}


def choose(model: nn.Module, data: dp.Data, method: str) -> list[int]:
    return dp.choose_labels(model, (tensors(24)[0] * 255).byte(), data, budget=4, method=method).bought.tolist()


def adapted(model: nn.Module, data: dp.Data) -> pd.DataFrame:
    settings = {"cotta": CottaSettings(views=1, confidence=1.1)}
    options: dict[str, Any] = {"per_corruption": 20, "single": 3, "batch_size": 10, "settings": settings}
    streams = [name for name in STREAMS if name != "ordered"]
    found = run_streams(model, data, "gaussian-blur", streams=streams, levels=[0, 2], **options)
    return found.by_stream()


CALLS: dict[str, Callable[[nn.Module, dp.Data], Any]] = {
    "evaluate": lambda model, data: dp.evaluate(model, data, salt),
    **{
        f"rank by {method}": lambda model, data, method=method: dp.rank_filters(model, data, salt, method=method)
        for method in METHODS
    },
    "successive elimination": lambda model, data: dp.rank_filters(model, data, salt, eliminate=0.1),
    "patch, router, switch": repair,
    "save, load": saved,
    "ratio": ratio,
    "finetune": lambda model, data: dp.finetune(model, data, "gaussian-blur", epochs=1).state_dict(),
    "adaptation": adapted,
    "statistics": lambda model, data: norms(model, data, salt, epochs=0).state_dict(),
    "one block": lambda model, data: surgical(model, data, "gaussian-blur", epochs=1).state_dict(),
    "worst level": lambda model, data: sensei(model, data, salt, epochs=1).state_dict(),
    "some levels": lambda model, data: sensei(model, data, "gaussian-blur", popsize=3, epochs=1).state_dict(),
    "worst transformation": lambda model, data: sensei(model, data, "spatial", popsize=4, epochs=2).state_dict(),
    "reduced models": lambda model, data: apricot(
        model, data, salt, rdlm=2, rdlm_epoch=1, fix_steps=2, eta=0.5, unconditional=True, epochs=1
    ).state_dict(),
    "first-order loss": lambda model, data: robot(
        model, data, salt, select="multisection", select_images=6, epochs=1
    ).state_dict(),
    "impurity": lambda model, data: gini(model, data, salt, select_images=6, select_half=True, epochs=1).state_dict(),
    "mixtures": lambda model, data: augmix(model, data, "gaussian-blur", epochs=1).state_dict(),
    "interpolate": between,
    "bank": banked,
    "influence": lambda model, data: dp.influence(model, data, k=3).indices(),
    "decompose": lambda model, data: dp.decompose(model, data, torch.tensor([[0, 4], [2, 3], [7, 0]])).state_dict(),
    "modules": split,
    "label at random": lambda model, data: label(model, data, "random"),
    "label by hybrid": lambda model, data: label(model, data, "hybrid"),
    "choose by typiclust": lambda model, data: choose(model, data, "typiclust"),
    "choose by uherding": lambda model, data: choose(model, data, "uherding"),
}


def on_processor(value: Any) -> Any:
    """Return a result in a form that compares: its tensors on the processor."""
    if isinstance(value, dict):
        return {key: on_processor(each) for key, each in value.items()}
    return value.detach().cpu() if isinstance(value, Tensor) else value


def assert_same(found: Any, wanted: Any) -> None:
    """Compare two results: tensors up to rounding, which depends on the layout of memory; all else exactly."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for key in wanted:
            assert_same(found[key], wanted[key])
    elif isinstance(wanted, Tensor):
        torch.testing.assert_close(found, wanted)
    elif isinstance(wanted, pd.DataFrame):
        pd.testing.assert_frame_equal(found, wanted)
    else:
        assert found == wanted


@pytest.mark.parametrize("name", CALLS)
def test_a_model_elsewhere_gives_what_it_gives_on_the_processor(name, monkeypatch):
    data = dp.Data.of(tensors(60), tensors(30), classes=["0", "1", "2"])
    here = dp.Classifier(network(), classes=data.classes)
    expected = on_processor(CALLS[name](here, data))
    with simulated(monkeypatch):
        there = dp.Classifier(network(), classes=data.classes).to(DEVICE)
        assert_same(on_processor(CALLS[name](there, data)), expected)
        assert all(isinstance(each, OnDevice) for each in there.state_dict().values())


def test_the_simulated_device_refuses_what_cuda_refuses(monkeypatch):
    """The test above can fail: each of these mixtures is an error."""
    with simulated(monkeypatch):
        there, here = torch.rand(4, 3).to(DEVICE), torch.rand(4, 3)
        for mixture in (
            lambda: there + here,
            lambda: nn.Linear(3, 2).to(DEVICE)(here),
            lambda: torch.cat([there, here]),
            lambda: here[torch.tensor([0]).to(DEVICE)],
        ):
            with pytest.raises(RuntimeError, match="device"):
                mixture()
        with pytest.raises(TypeError, match="NumPy"):
            there.numpy()
        assert (there[torch.tensor([0, 2])] * torch.tensor(2.0)).device == DEVICE
        assert there.cpu().device == torch.device("cpu")


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
TRAINS = (
    "patch, router, switch", "save, load", "ratio", "finetune", "modules", "label at random", "label by hybrid",
    "worst level", "some levels", "worst transformation", "reduced models", "first-order loss", "impurity", "mixtures",
)  # fmt: skip


def dim(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Darken; nothing is drawn, so that both devices see the same pixels."""
    assert generator.device == pixels.device
    return 0.4 * pixels


def assert_alike(found: Any, wanted: Any, exact: bool) -> None:
    """Compare two results: the same kinds of values everywhere, and the same numbers up to rounding where `exact`."""
    assert type(found) is type(wanted)
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for key in wanted:
            assert_alike(found[key], wanted[key], exact)
    elif isinstance(wanted, Tensor):
        assert found.shape == wanted.shape
        assert found.double().isfinite().all()
        if exact:
            torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    elif isinstance(wanted, pd.DataFrame):
        assert list(found.columns) == list(wanted.columns)
        if exact:
            pd.testing.assert_frame_equal(found, wanted)
    elif isinstance(wanted, Ranking):
        for layer, scores in wanted.scores.items():
            assert found.scores[layer] == pytest.approx(scores, rel=1e-3, abs=1e-3)
    elif exact:
        assert found == wanted


@pytest.fixture
def exact_kernels(monkeypatch):
    """Set what the stages set for every run."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


def results(name: str, device: str) -> tuple[Any, dp.Classifier]:
    data = dp.Data.of(tensors(60), tensors(30), classes=["0", "1", "2"])  # on the processor
    model = dp.Classifier(network(), classes=data.classes).to(device)
    return on_processor(CALLS[name](model, data)), model


@needs_cuda
@pytest.mark.parametrize("name", CALLS)
def test_a_model_on_cuda_gives_what_it_gives_on_the_processor(name, exact_kernels, monkeypatch):
    monkeypatch.setitem(globals(), "salt", dim)
    expected, _ = results(name, "cpu")
    found, model = results(name, "cuda")
    assert all(each.is_cuda for each in model.state_dict().values())
    assert_alike(found, expected, exact=name not in TRAINS)


@needs_cuda
@pytest.mark.parametrize("name", ["finetune", "patch, router, switch"])
def test_two_runs_on_cuda_give_the_same_bytes(name, exact_kernels, monkeypatch):
    monkeypatch.setitem(globals(), "salt", dim)
    (one, _), (two, _) = results(name, "cuda"), results(name, "cuda")
    one, two = (each.get("patch", each) for each in (one, two))
    assert all(torch.equal(one[key], two[key]) for key in one)
