from __future__ import annotations

import hashlib
import io
import pickle
import re
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from deeppatch.errors import DownloadFailed, WrongWeights
from deeppatch.zoo import weights
from deeppatch.zoo.architectures import ARCHITECTURES


@pytest.fixture
def network():
    torch.manual_seed(4)
    return ARCHITECTURES["resnet8"](10)


@pytest.fixture
def state(network):
    return {key: value.clone() for key, value in network.state_dict().items()}


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """The folder of downloaded files, empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    return tmp_path / "cache" / "hub" / "checkpoints"


@pytest.fixture
def published(tmp_path, state) -> tuple[str, bytes]:
    """The url of a published file, whose name carries its hash, and its content."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    path = tmp_path / f"cifar10_resnet8-{hashlib.sha256(content).hexdigest()[:8]}.pt"
    path.write_bytes(content)
    return path.as_uri(), content


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


NO_ROUTE = urllib.error.URLError("no route to host")


def offline(monkeypatch, error: Exception = NO_ROUTE) -> None:
    def refuse(*_arguments, **_names):
        raise error

    monkeypatch.setattr(torch.hub, "urlopen", refuse)


def complaint(call, *arguments) -> str:
    """The one line that WrongWeights says."""
    with pytest.raises(WrongWeights) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- fetch


def test_a_published_file_is_downloaded_once_and_then_found(hub, published, monkeypatch):
    url, content = published
    path = weights.fetch(url)
    assert path == hub / url.rsplit("/", 1)[1]
    assert path.read_bytes() == content
    assert [each.name for each in hub.iterdir()] == [path.name]
    offline(monkeypatch)
    assert weights.fetch(url) == path


def test_a_truncated_copy_is_named_with_what_to_do(hub, published):
    url, content = published
    path = weights.fetch(url)
    path.write_bytes(content[:-100])
    message = complaint(weights.fetch, url)
    assert message.startswith(f"{path} is damaged")
    assert "delete it and run again" in message


def test_a_damaged_download_is_refused_and_leaves_nothing(hub, published, tmp_path):
    url, content = published
    (tmp_path / url.rsplit("/", 1)[1]).write_bytes(content[:-100])
    assert "damaged" in complaint(weights.fetch, url)
    assert list(hub.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        NO_ROUTE,
        urllib.error.HTTPError("https://x", 404, "Not Found", None, None),
        TimeoutError("timed out"),
        ConnectionResetError("reset by peer"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_without_a_network_the_message_names_three_ways_out(hub, published, monkeypatch, error):
    offline(monkeypatch, error)
    url, _ = published
    with pytest.raises(DownloadFailed) as caught:
        weights.fetch(url)
    message = str(caught.value)
    assert "\n" not in message
    for part in (url, str(hub / url.rsplit("/", 1)[1]), "--weights FILE", "--train"):
        assert part in message
    assert list(hub.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "digits"),
    [
        ("resnet20-12fca82f.th", "12fca82f"),
        ("cifar10_mobilenetv2_x0_5-ca14ced9.pt", "ca14ced9"),
        ("weights.safetensors", None),
        ("my-model.pt", None),
        ("resnet-20.pt", None),
        ("net-12FCA82F.pt", None),
    ],
)
def test_the_hash_stands_between_dash_and_dot(name, digits):
    assert weights.hash_in_name(Path("a-12345678.d") / name) == digits


def test_a_name_without_a_hash_passes(tmp_path):
    (tmp_path / "mine.pt").write_bytes(b"anything")
    weights.verify(tmp_path / "mine.pt")


# --- read


def test_a_state_dict_is_read_from_either_format(tmp_path, state):
    torch.save(state, tmp_path / "a.pt")
    torch.save({"state_dict": state, "best_prec1": 91.7, "epoch": 3}, tmp_path / "b.th")
    safetensors.torch.save_file(state, tmp_path / "c.safetensors")
    for name in ("a.pt", "b.th", "c.safetensors"):
        assert same(weights.read(tmp_path / name), state), name


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict"])
@pytest.mark.parametrize("number", [0.9, 3, np.float64(0.9), np.int64(3)], ids=lambda number: type(number).__name__)
@pytest.mark.parametrize("core", [b"numpy.core.", b"numpy._core."])
def test_a_state_dict_is_found_in_the_checkpoint_of_a_training_run(tmp_path, state, key, number, core):
    buffer = io.BytesIO()
    content = {"epoch": number, key: state, "best_acc": number, "optimizer_state_dict": {"state": {}}}
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    # numpy 1 and numpy 2 write their numbers under different names
    (tmp_path / "x.pt").write_bytes(re.sub(rb"numpy\._?core\.", core, buffer.getvalue()))
    assert same(weights.read(tmp_path / "x.pt"), state)


@pytest.mark.parametrize("name", ["absent.pt", "absent.safetensors"])
def test_a_missing_file_is_named(tmp_path, name):
    message = complaint(weights.read, tmp_path / name)
    assert message == f"{tmp_path / name}: there is no such file; check the path"


def test_a_folder_is_no_file(tmp_path):
    assert complaint(weights.read, tmp_path) == f"{tmp_path} is a folder; name the file of the weights in it"


def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path, state):
    path = tmp_path / "resnet32-d509ac18.th"
    torch.save(state, path)
    assert "its SHA-256 begins" in complaint(weights.read, path)


def test_only_published_names_are_read_as_hashes(tmp_path, state):
    path = tmp_path / "net-20240131.pt"
    torch.save(state, path)
    assert weights.read(path).keys() == state.keys()


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt"])
@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_damaged(tmp_path, state, name, share):
    path = tmp_path / name
    if name == "x.pt":
        torch.save(state, path)
    else:
        safetensors.torch.save_file(state, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert complaint(weights.read, path).startswith(f"{path} is damaged")


GARBAGE = {"empty": b"", "one byte": b"P", "text": b"garbage", "bytes": b"\xff" * 100}


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt", "x.th"])
@pytest.mark.parametrize("content", GARBAGE.values(), ids=GARBAGE.keys())
def test_garbage_is_no_weights_file(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert complaint(weights.read, tmp_path / name).startswith(f"{tmp_path / name} is damaged")


@pytest.mark.parametrize(
    "content", [[1, 2], {"epoch": 3}, {"state_dict": {"a": 1}}, {"model_state_dict": {"a": 1}}, torch.ones(2)]
)
def test_a_file_without_a_state_dict_says_how_to_make_one(tmp_path, content):
    torch.save(content, tmp_path / "x.pt")
    assert "torch.save(model.state_dict(), FILE)" in complaint(weights.read, tmp_path / "x.pt")


class Code:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("save", ["torch", "legacy", "pickle"])
def test_code_in_a_pickle_is_never_run(tmp_path, save):
    path, mark = tmp_path / "x.pt", tmp_path / "ran"
    content = {"weight": Code(mark)}
    if save == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=save == "torch")
    assert str(path) in complaint(weights.read, path)
    assert not mark.exists()


# --- load_network


def test_a_plain_state_dict_loads(state):
    torch.manual_seed(9)
    other = ARCHITECTURES["resnet8"](10)
    weights.load_network(other, state, "x.pt")
    assert same(other.state_dict(), state)


def test_the_module_prefix_and_the_older_head_are_mended(state):
    old = {f"module.{key}".replace("module.fc.", "module.linear."): value for key, value in state.items()}
    assert "module.linear.weight" in old
    kept = dict(old)
    torch.manual_seed(9)
    other = ARCHITECTURES["resnet8"](10)
    weights.load_network(other, old, "x.pt")
    assert same(other.state_dict(), state)
    assert old.keys() == kept.keys()


def test_a_checkpoint_without_batch_counters_loads(state):
    old = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    assert len(old) < len(state)
    other = ARCHITECTURES["resnet8"](10)
    weights.load_network(other, old, "x.pt")
    assert same(other.state_dict(), state)


def test_another_number_of_classes_is_told_from_another_network(state):
    for count in (100, 9):
        other = ARCHITECTURES["resnet8"](count)
        before = {key: value.clone() for key, value in other.state_dict().items()}
        message = complaint(weights.load_network, other, state, "x.pt")
        assert message == (
            f"x.pt is for 10 classes, the data set has {count}; choose the data set that it was made for"
        )
        assert same(other.state_dict(), before)


@pytest.mark.parametrize("name", ["resnet20", "vgg13_bn"])
def test_another_network_is_named_by_its_keys(state, name):
    with torch.device("meta"):
        other = ARCHITECTURES[name](10)
    message = complaint(weights.load_network, other, state, "x.pt")
    assert message.startswith("x.pt is for another network (no ")
    assert message.endswith("; it fits resnet8: choose that with -m")


def test_missing_and_surplus_keys_are_both_named(network, state):
    state["extra.weight"] = state.pop("conv1.weight")
    message = complaint(weights.load_network, network, state, "x.pt")
    assert "no conv1.weight" in message
    assert "unknown extra.weight" in message


def test_a_shape_that_differs_is_named_with_both_shapes(network, state):
    state["layer1.0.conv1.weight"] = torch.zeros(16, 16, 5, 5)
    state["fc.weight"], state["fc.bias"] = torch.zeros(7, 64), torch.zeros(7)
    message = complaint(weights.load_network, network, state, "x.pt")
    assert "layer1.0.conv1.weight has shape (16, 16, 5, 5), the network wants (16, 16, 3, 3)" in message


def test_a_refused_state_leaves_the_network_as_it_was(network, state):
    before = {key: value.clone() for key, value in network.state_dict().items()}
    changed = {key: value + 1 for key, value in state.items()}
    changed["layer1.0.conv1.weight"] = torch.zeros(1)
    complaint(weights.load_network, network, changed, "x.pt")
    assert same(network.state_dict(), before)
