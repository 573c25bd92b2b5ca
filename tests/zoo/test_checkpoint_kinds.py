"""Checkpoints as training runs leave them: where the weights lie in them, what is beside, and what is refused."""

from __future__ import annotations

import argparse
import builtins
import collections
import datetime
import enum
import io
import logging
import os
import pathlib
import pickle
import zipfile
from collections import OrderedDict, defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from deeppatch.errors import WrongWeights
from deeppatch.zoo import weights
from deeppatch.zoo.architectures import ARCHITECTURES
from deeppatch.zoo.classifier import Classifier


class Net(nn.Module):
    """A network whose names are those of the zoo's residual networks, in small."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(nn.Module())
        self.layer1[0].downsample = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.fc = nn.Linear(4, classes)


class Settings(dict):
    """A class of somebody's own that is a dict."""


class Phase(enum.Enum):
    TRAIN = 1


@pytest.fixture
def state():
    torch.manual_seed(1)
    return {key: torch.rand_like(value) if value.ndim else value for key, value in Net().state_dict().items()}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.pt"


def loaded(path) -> dict[str, torch.Tensor]:
    network = Net()
    weights.load_network(network, weights.network_state(weights.read(path, Net)), path)
    return network.state_dict()


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def refused(path, call=loaded) -> str:
    with pytest.raises(WrongWeights) as error:
        call(path)
    message = str(error.value)
    assert "\n" not in message
    assert str(path) in message
    return message


# --- where the weights lie


@pytest.mark.parametrize("key", ["net", "model", "state_dict", "model_state", "model_state_dict", "ema", "params", "x"])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_state_dict_is_found_under_any_key(path, state, key, legacy):
    torch.save({"epoch": 3, key: state}, path, _use_new_zipfile_serialization=not legacy)
    assert same(loaded(path), state)


@pytest.mark.parametrize(
    "wrap",
    [lambda sd: {"a": {"b": {"c": sd}}}, lambda sd: [None, sd], lambda sd: {"folds": {0: sd}},
     lambda sd: Settings(weights=sd), lambda sd: SimpleNamespace(weights=sd), lambda sd: OrderedDict(a=OrderedDict(sd)),
     lambda sd: defaultdict(dict, a=sd), lambda sd: {key: nn.Parameter(v.float()) for key, v in sd.items()}],
)  # fmt: skip
@pytest.mark.parametrize("protocol", [2, 4])
def test_it_is_found_however_deep_it_lies(path, state, wrap, protocol):
    torch.save(wrap(state), path, pickle_protocol=protocol)
    assert all(torch.equal(value, state[key].to(value.dtype)) for key, value in loaded(path).items())


def test_of_several_the_one_that_fits_is_taken_and_that_is_said(path, state, caplog):
    caplog.set_level(logging.INFO, "deeppatch")
    other = {f"gen.{index}": torch.rand(3) for index in range(12)}
    torch.save({"generator": other, "classifier": state}, path)
    assert same(loaded(path), state)
    assert (
        "several state dicts (generator, classifier); classifier is loaded (its names fit the network)" in caplog.text
    )


@pytest.mark.parametrize("copy", ["model_ema", "ema", "swa_model", "best_state"])
def test_an_averaged_copy_is_not_taken_where_there_is_the_network_itself(path, state, caplog, copy):
    caplog.set_level(logging.INFO, "deeppatch")
    torch.save({copy: {key: value + 1 for key, value in state.items()}, "model": state}, path)
    assert same(loaded(path), state)
    assert f"several state dicts ({copy}, model); model is loaded" in caplog.text


def test_an_optimizer_is_no_network(path, state, caplog):
    caplog.set_level(logging.INFO, "deeppatch")
    network = Net()
    optimizer = torch.optim.Adam(network.parameters())
    sum(parameter.sum() for parameter in network.parameters()).backward()
    optimizer.step()
    torch.save({"a": optimizer.state_dict(), "state_dict": state}, path)
    assert same(loaded(path), state)
    assert "several" not in caplog.text
    torch.save(optimizer.state_dict(), path)
    assert "holds the state of an optimizer" in refused(path)


# --- names


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "model.", "net.", "backbone.", "network.", "module._orig_mod.", "_orig_mod.module.",
     "module.module.", "model.net.backbone.", "net.module.model._orig_mod."],
)  # fmt: skip
@pytest.mark.parametrize("head", ["fc", "linear"])
def test_prefixes_of_wrappers_are_stripped(path, state, prefix, head):
    torch.save({f"{prefix}{key.replace('fc.', f'{head}.')}": value for key, value in state.items()}, path)
    assert same(loaded(path), state)


def test_wrappers_in_the_middle_are_stripped(path, state):
    torch.save({key.replace("layer1.", "layer1.module."): value for key, value in state.items()}, path)
    assert same(loaded(path), state)
    torch.save({"model." + key.replace("layer1.0", "layer1._orig_mod.0.module"): v for key, v in state.items()}, path)
    assert same(loaded(path), state)


def test_names_of_another_version_of_the_networks_are_mapped(path, state):
    old = {key.replace("downsample", "shortcut").replace("fc.", "linear."): value for key, value in state.items()}
    torch.save({"net": {f"module.{key}": value for key, value in old.items()}, "acc": 95.1, "epoch": 7}, path)
    assert same(loaded(path), state)


def test_nothing_is_stripped_where_the_rest_would_not_fit(path, state):
    torch.save({f"module.{key}": value for key, value in state.items() if key != "conv1.weight"}, path)
    assert "another network (no conv1.weight)" in refused(path)
    torch.save({f"encoder.{key}": value for key, value in state.items()}, path)
    assert "another network (no " in refused(path)


def test_a_network_s_own_prefix_is_kept(path):
    network = nn.ModuleDict({"model": nn.ModuleDict({"module": nn.Linear(2, 3)})})
    wanted = network.state_dict()
    torch.save({f"module.{key}": value for key, value in wanted.items()}, path)
    other = nn.ModuleDict({"model": nn.ModuleDict({"module": nn.Linear(2, 3)})})
    weights.load_network(other, weights.read(path), path)
    assert same(other.state_dict(), wanted)


def test_counters_and_scalars_beside_are_ignored(path, state):
    averaged = {"n_averaged": torch.tensor(7), **{f"module.{key}": value for key, value in state.items()}}
    torch.save({**averaged, "epoch": 3, "name": "x", "loss": 0.5, "none": None}, path)
    assert same(loaded(path), state)


def test_what_lies_beside_the_network_is_named(path, state, caplog):
    caplog.set_level(logging.INFO, "deeppatch")
    torch.save({**{f"model.{key}": value for key, value in state.items()}, "loss.weight": torch.ones(5)}, path)
    assert same(loaded(path), state)
    assert "ignored beside the network: loss.weight" in caplog.text


def test_of_two_networks_in_one_state_dict_the_choice_is_said(path, state, caplog):
    caplog.set_level(logging.INFO, "deeppatch")
    both = {
        f"{prefix}{key}": value + (prefix == "net.") for key, value in state.items() for prefix in ("model.", "net.")
    }
    torch.save(both, path)
    assert same(loaded(path), state)
    assert (
        "2 networks beside each other; that of model.conv1.weight is loaded, not that of net.conv1.weight"
        in caplog.text
    )


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_a_classifier_within_wrappers_brings_its_normalisation(path, state, prefix):
    model = Classifier(Net(), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    model.network.load_state_dict(state)
    torch.save({f"{prefix}{key}": value for key, value in model.state_dict().items()}, path)
    assert same(loaded(path), state)
    mean, std = weights.saved_normalisation(weights.read(path, Net), path)
    assert (mean, std) == (pytest.approx([0.1, 0.2, 0.3]), pytest.approx([0.4, 0.5, 0.6]))


# --- company

COMPANY = {
    "namespace": argparse.Namespace(lr=0.1, layers=[1, 2]), "path": pathlib.Path("/a/b"),
    "pure path": pathlib.PureWindowsPath("c:/a"), "time": datetime.datetime(2024, 1, 2), "span": datetime.timedelta(1),
    "defaultdict": defaultdict(list, a=[1]), "nested defaultdict": defaultdict(dict, a={"b": 1}),
    "counter": collections.Counter("abca"), "set": {1, 2}, "frozenset": frozenset({1}), "bytes": b"abc", "complex": 1j,
    "big": 10**30, "enum": Phase.TRAIN, "class": nn.ReLU, "function": torch.relu, "dtype": torch.float16,
    "device": torch.device("cpu"), "size": torch.Size([1]), "deque": collections.deque([1], 3), "own": Settings(a=1),
    "numpy dtype": np.dtype("float32"), "arrays": [np.arange(3), np.array(["x"]), np.ones((2, 2), ">f4")],
    "masked": np.ma.array([1, 2], mask=[0, 1]), "generator": np.random.default_rng(1), "range": range(3),
    **{f"numpy {kind}": np.dtype(kind).type(1) for kind in ("f2", "f4", "f8", "i1", "i4", "i8", "u1", "u8", "?", "c8")},
    "numpy str": np.str_("x"), "numpy time": np.datetime64("2024-01-02"), "module": nn.Linear(2, 2),
    "random": np.random.RandomState(1).get_state(), "sparse": torch.eye(3).to_sparse(), "optimizer": torch.optim.SGD,
}  # fmt: skip


@pytest.mark.parametrize("name", COMPANY)
@pytest.mark.parametrize("protocol", [2, 5])
def test_inert_company_is_passed_over(path, state, name, protocol):
    for legacy in (False, True):
        torch.save(
            {"args": COMPANY[name], "state_dict": state, "n": [COMPANY[name]]},
            path, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy,
        )  # fmt: skip
        assert same(loaded(path), state)


# --- nothing is executed


class Runs:
    """Would call a function when it is unpickled."""

    def __init__(self, function, *arguments) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def attacks(mark: pathlib.Path) -> dict[str, object]:
    touch = f"touch {mark}"
    code = f"open({str(mark)!r}, 'w')"
    return {
        "system": Runs(os.system, touch),
        "popen": Runs(os.popen, touch),
        "exec": Runs(exec, code),
        "eval": Runs(eval, code),
        "open": Runs(open, str(mark), "w"),
        "touch": Runs(pathlib.Path.touch, mark),
        "nested": Runs(dict, Runs(list, [Runs(os.system, touch)])),
        "getattr chain": Runs(Runs(getattr, Runs(getattr, os, "path"), "os"), touch),
        "getattr of a builtin": Runs(Runs(getattr, builtins, "exec"), code),
        "map": Runs(list, Runs(map, os.system, [touch])),
        "load": Runs(torch.load, str(mark)),
        "nested pickle": Runs(pickle.loads, pickle.dumps(Runs(os.system, touch))),
    }


@pytest.mark.parametrize("name", attacks(pathlib.Path("x")))
@pytest.mark.parametrize("how", ["zip", "legacy", "pickle", "protocol 5"])
def test_nothing_in_a_pickle_is_ever_called(path, state, tmp_path, name, how):
    mark = tmp_path / "ran"
    content = {"state_dict": state, "args": attacks(mark)[name]}
    try:
        if how == "pickle":
            path.write_bytes(pickle.dumps(content["args"], protocol=2))
        else:
            protocol = 5 if how == "protocol 5" else 2
            torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=how != "legacy")
    except (TypeError, pickle.PicklingError):
        pytest.skip("cannot be pickled, therefore no attack")
    mark.unlink(missing_ok=True)
    try:
        weights.read(path)
    except WrongWeights as error:
        assert "\n" not in str(error)  # noqa: PT017
    assert not mark.exists()


def test_a_file_that_would_run_something_is_refused_with_what(path, state, tmp_path):
    torch.save({"state_dict": state, "args": Runs(os.system, f"touch {tmp_path}/ran")}, path)
    message = refused(path)
    assert f"would run {os.system.__module__}.system" in message
    assert "nothing was run here" in message
    assert not (tmp_path / "ran").exists()


def test_hostile_instructions_end_in_one_line(path):
    bodies = [
        b".", b"(.", b"h\x05.", b"]]s.", b"cos\nsystem\n(S'x'\ntR.", b"(" * 5000 + b".",
        b"K\x01" + b"\x85" * 5000 + b".", b"\x8e" + b"\xff" * 8,
    ]  # fmt: skip
    for body in bodies:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x/data.pkl", b"\x80\x02" + body)
            archive.writestr("x/version", "3")
        refused(path)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_whatever_is_damaged_ends_in_one_line_or_is_still_read(path, state, legacy):
    torch.save({"args": COMPANY["namespace"], "state_dict": state}, path, _use_new_zipfile_serialization=not legacy)
    content = path.read_bytes()
    draw = np.random.default_rng(3)
    for _ in range(200):
        changed = bytearray(content)
        for place in draw.integers(0, len(content), 3):
            changed[place] = draw.integers(0, 256)
        path.write_bytes(changed)
        try:
            weights.read(path)
        except WrongWeights as error:
            assert "\n" not in str(error)  # noqa: PT017


# --- refusals


def test_a_pickled_module_is_named(path):
    for legacy in (False, True):
        torch.save(Net(), path, _use_new_zipfile_serialization=not legacy)
        assert "holds a pickled module (" in (message := refused(path))
        assert "Net), which only its own code can load" in message
        assert message.endswith("save one with torch.save(model.state_dict(), FILE)")
    torch.save({"epoch": 1, "model": nn.DataParallel(Net())}, path)
    assert "pickled module" in refused(path)
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)
    assert "is a TorchScript program" in refused(path)


def changed(state, key, value):
    return {**state, key: value}


CONTENTS = {
    "sparse": (lambda sd: changed(sd, "fc.weight", sd["fc.weight"].to_sparse()), "fc.weight is sparse"),
    "csr": (lambda sd: changed(sd, "fc.weight", sd["fc.weight"].to_sparse_csr()), "fc.weight is sparse"),
    "quantised": (
        lambda sd: changed(sd, "fc.weight", torch.quantize_per_tensor(sd["fc.weight"], 0.1, 0, torch.qint8)),
        "fc.weight is quantised",
    ),
    "meta": (lambda sd: changed(sd, "fc.weight", sd["fc.weight"].to("meta")), "fc.weight has no values"),
    "integer keys": (lambda sd: dict(enumerate(sd.values())), "holds tensors by numbers, not by the names"),
    "list": (lambda sd: list(sd.values()), "holds a list of tensors without names"),
    "tensor": (lambda sd: sd["fc.weight"], "holds one tensor without a name"),
    "arrays": (lambda sd: {key: value.numpy() for key, value in sd.items()}, "holds numpy arrays (conv1.weight)"),
    "object": (lambda sd: argparse.Namespace(lr=1), "holds an object (argparse.Namespace), no state dict"),
    "numbers": (lambda sd: {"epoch": 3}, "holds no state dict"),
    "nan": (lambda sd: changed(sd, "bn1.bias", torch.full((4,), float("nan"))), "bn1.bias holds 4 NaN or infinite"),
    "infinite": (lambda sd: changed(sd, "bn1.bias", torch.tensor([0, 1, 2, torch.inf])), "bn1.bias holds 1 NaN or inf"),
    "variance": (lambda sd: changed(sd, "bn1.running_var", -sd["bn1.running_var"]), "bn1.running_var holds a negative"),
    "whole numbers": (lambda sd: changed(sd, "fc.weight", sd["fc.weight"].to(torch.int8)), "fc.weight holds int8, no"),
    "complex": (lambda sd: changed(sd, "fc.weight", sd["fc.weight"].to(torch.complex64)), "fc.weight holds complex64"),
    "bool": (lambda sd: changed(sd, "fc.weight", sd["fc.weight"] > 0.5), "fc.weight holds bool, no floating-point"),
    "classes": (lambda sd: Net(7).state_dict(), "is for 7 classes, the data set has 5"),
    "shape": (lambda sd: changed(sd, "conv1.weight", torch.zeros(4, 3, 5, 5)), "conv1.weight has shape (4, 3, 5, 5)"),
    "a line break": (lambda sd: changed(sd, "x\n\x1b[31my", torch.ones(2)), "unknown x??[31my"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTENTS)
def test_each_refusal_has_its_true_reason(path, state, name):
    change, said = CONTENTS[name]
    torch.save(change(state), path)
    assert said in refused(path)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_other_floating_point_numbers_are_converted(path, state, kind):
    torch.save({key: value.to(kind) if value.is_floating_point() else value for key, value in state.items()}, path)
    assert all(
        torch.equal(value, state[key].to(kind).to(value.dtype)) if value.is_floating_point() else True
        for key, value in loaded(path).items()
    )


def test_views_of_one_storage_and_transposed_tensors_are_read_as_they_are(path, state):
    flat = torch.cat([value.flatten() for value in state.values() if value.is_floating_point()])
    parts, place = {}, 0
    for key, value in state.items():
        parts[key] = value
        if value.is_floating_point():
            parts[key], place = flat[place : place + value.numel()].view(value.shape), place + value.numel()
    parts["fc.weight"] = parts["fc.weight"].t().contiguous().t()
    for legacy in (False, True):
        torch.save(parts, path, _use_new_zipfile_serialization=not legacy)
        assert same(loaded(path), state)


BYTES = {
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 12\n", "is a Git-LFS pointer"),
    "page": (b"<!DOCTYPE html><html>404</html>", "is a web page, not weights"),
    "indented page": (b"\n  <html>404</html>", "is a web page, not weights"),
    "json": (b'{"weight_map": {}}', "is JSON text"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "is an HDF5 file"),
    "gzip": (b"\x1f\x8b" + bytes(99), "is compressed by gzip"),
    "array": (b"\x93NUMPY" + bytes(99), "is a numpy array"),
    "tar": (bytes(257) + b"ustar" + bytes(300), "is a tar archive"),
    "empty": (b"", "is damaged: it is empty"),
    "junk": (b"junk", "is damaged, or is neither"),
    "pickle": (pickle.dumps({"a": 1}), "was written by pickle.dump, not by torch.save"),
}


@pytest.mark.parametrize("name", BYTES)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_file_of_another_kind_is_named(tmp_path, name, suffix):
    path, (content, said) = tmp_path / f"x.{suffix}", BYTES[name]
    path.write_bytes(content)
    if (name, suffix) == ("pickle", "safetensors"):
        said = "is a torch checkpoint by its content"
    assert said in refused(path)


def test_a_wrong_suffix_is_said(tmp_path, state):
    safetensors.torch.save_file(state, tmp_path / "x.pt")
    assert refused(tmp_path / "x.pt").endswith("is a safetensors file by its content; rename it to x.safetensors")
    torch.save(state, tmp_path / "y.safetensors")
    assert refused(tmp_path / "y.safetensors").endswith("is a torch checkpoint by its content; rename it to y.pt")


def test_archives_that_are_no_checkpoints_are_named(path, state):
    buffer = io.BytesIO()
    np.savez(buffer, a=np.ones(2))
    path.write_bytes(buffer.getvalue())
    assert "is an archive of numpy arrays" in refused(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights.pt", b"x")
    assert "is a zip archive that torch did not write" in refused(path)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.999])
def test_a_file_that_is_cut_off_is_damaged(path, state, legacy, share):
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert "is damaged" in refused(path)


def test_a_repacked_archive_with_a_cut_member_is_damaged(path, tmp_path, state):
    torch.save(state, tmp_path / "whole.pt")
    with zipfile.ZipFile(tmp_path / "whole.pt") as whole, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as other:
        for name in whole.namelist():
            other.writestr(name, whole.read(name))
    assert same(loaded(path), state)
    with zipfile.ZipFile(tmp_path / "whole.pt") as whole, zipfile.ZipFile(path, "w") as other:
        for name in whole.namelist():
            other.writestr(name, whole.read(name)[:-1] if "/data/" in name else whole.read(name))
    assert "conv1.weight is cut off" in refused(path)


@pytest.mark.parametrize(
    ("mean", "std", "said"),
    [([0.5] * 5, [0.2] * 3, "normalize.mean holds 5 numbers"), ([0.5] * 3, [0.2, 0, 0.2], "std is not above 0"),
     ([0.5] * 3, [0.2, -1, 0.2], "std is not above 0"), ([0.5, torch.nan, 0], [0.2] * 3, "mean holds NaN"),
     ([0.5] * 3, [torch.inf] * 3, "normalize.std holds NaN or infinite"), ([1, 2, 3], [0.2] * 3, "of type int64")],
)  # fmt: skip
def test_a_normalisation_that_cannot_be_one_is_refused(path, state, mean, std, said):
    whole = {f"network.{key}": value for key, value in state.items()}
    whole |= {"normalize.mean": torch.tensor(mean).view(-1, 1, 1), "normalize.std": torch.tensor(std).view(-1, 1, 1)}
    torch.save(whole, path)
    assert said in refused(path, lambda path: weights.saved_normalisation(weights.read(path, Net), path))


@pytest.mark.parametrize("name", ["resnet20a", "vgg13_bn", "resnet18_imagenet_stem"])
def test_the_network_that_weights_fit_is_named(path, name):
    torch.save({"net": {f"module.{key}": v for key, v in ARCHITECTURES[name](4).state_dict().items()}}, path)
    network = ARCHITECTURES["resnet18"](4)
    message = refused(path, lambda path: weights.load_network(network, weights.read(path), path))
    assert message.endswith(f"; it fits {name}: choose that with -m")
