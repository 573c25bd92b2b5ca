"""Networks by name: of timm, of torchvision, functions of one's own; mistakes are one line, downloads are checked."""

from __future__ import annotations

import functools
import hashlib
import http.server
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from deeppatch.errors import DownloadFailed, UserError
from deeppatch.zoo import resolve as module
from deeppatch.zoo import weights
from deeppatch.zoo.entries import Entry
from deeppatch.zoo.loading import load_classifier
from deeppatch.zoo.names import ARCHITECTURE_NAMES, LIBRARIES, model_slug
from deeppatch.zoo.resolve import resolve

SOURCE = """
import sys

import torch
from torch import nn

class Small(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, classes)

    def forward(self, pixels):
        return self.fc(self.conv(pixels).mean((2, 3)))

def broken(classes):
    raise RuntimeError("no\\nluck")

def text(classes):
    return "network"

def leaving(classes):
    sys.exit(0)

def wrapped(classes):
    import deeppatch
    return deeppatch.Classifier(Small(classes))

def frozen(classes):
    return Small(classes).requires_grad_(False)

def half_frozen(classes):
    network = Small(classes)
    network.fc.weight.requires_grad_(False)
    return network

number = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A package of one's own in the working directory."""
    for name in ("mine", "mine.nets"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("")
    (tmp_path / "mine" / "nets.py").write_text(SOURCE)
    (tmp_path / "mine" / "needy.py").write_text("import a_module_that_is_not_here\n")
    (tmp_path / "mine" / "wrong.py").write_text("def f(:\n")
    (tmp_path / "mine" / "script.py").write_text("raise SystemExit(0)\n")
    monkeypatch.chdir(tmp_path)
    yield "mine.nets"
    for name in [name for name in sys.modules if name.split(".")[0] == "mine"]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("name", "size", "mean"),
    [
        ("resnet56a", 32, None), ("resnet50", 224, None), ("torchvision:resnet18", 224, 0.485),
        ("torchvision:mobilenet_v3_small", 224, 0.485), ("timm:convnext_atto", 224, 0.485),
        ("timm:vit_tiny_patch16_224", 224, 0.5),
    ],
)  # fmt: skip
def test_a_network_is_found_and_built_for_the_classes(name, size, mean):
    found = resolve(name)
    assert (found.name, found.image_size) == (name, size)
    assert (found.normalisation[0][0] if found.normalisation else None) == mean
    network = found.build(7).eval()
    with torch.no_grad():
        assert network(torch.rand(1, 3, size, size)).shape == (1, 7)


@pytest.mark.parametrize("name", ["timm:vit_tiny_patch16_224", "torchvision:vit_b_16"])
def test_a_network_that_reads_one_size_is_built_for_the_one_that_is_asked_for(name):
    found = resolve(name, 64)
    with torch.no_grad():
        assert found.build(3).eval()(torch.rand(1, 3, 64, 64)).shape == (1, 3)
    assert (found.image_size, found.published) == (64, {})
    assert resolve("timm:convnext_atto", 64).published, "any size fits it"


@pytest.mark.parametrize(("name", "blocks"), [("resnet44a", 21), ("resnet56a", 27), ("resnet110a", 54)])
def test_deeper_networks_of_the_zoo_have_parameter_free_shortcuts(name, blocks):
    network = resolve(name).build(10)
    convolutions = [each for each in network.modules() if isinstance(each, nn.Conv2d)]
    assert len(convolutions) == 1 + 2 * blocks
    assert {each.kernel_size for each in convolutions} == {(3, 3)}
    assert resolve(name).published["cifar10"].url.endswith(".th")


def test_a_class_or_function_of_one_s_own_is_imported_from_the_working_directory(own):
    assert resolve(f"{own}:Small").build(5).fc.out_features == 5
    model = load_classifier(f"{own}:Small", 5)
    assert model(torch.rand(2, 3, 20, 30)).shape == (2, 5)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("resnt8", r"no network resnt8 in the zoo \(did you mean resnet8\?\)"),
        ("timm:", "names no network of timm"),
        ("torchvision:resnet 18", "names no network of torchvision"),
        ("torchvision:resnet1", r"torchvision has no classifier resnet1 \(did you mean resnet18\?\)|no classifier"),
        ("torchvision:fasterrcnn_resnet50_fpn", "torchvision has no classifier"),
        ("timm:convnext_atom", r"timm has no network convnext_atom \(did you mean convnext_atto\?\)"),
        ("a-b:c", "is no function"),
        ("mine.nets:", "is no function"),
        ("nowhere.nets:Small", "there is no module nowhere in"),
        ("mine.absent:Small", "there is no module mine.absent in"),
        ("mine.needy:Small", "mine.needy imports a_module_that_is_not_here, which is not installed"),
        ("mine.wrong:Small", "importing mine.wrong fails: SyntaxError"),
        ("mine.nets:SmallX", r"has no SmallX \(did you mean Small\?\)"),
        ("mine.nets:number", "is int, not a function"),
    ],
)
def test_what_there_is_not_is_told_in_one_line(own, name, reason):
    with pytest.raises(UserError, match=reason) as failure:
        resolve(name)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("broken", "RuntimeError: no luck"),
        ("text", "returned str"),
        ("leaving", "SystemExit: 0"),
        ("wrapped", "returned a deeppatch.Classifier, which would normalise a second time"),
    ],
)
def test_a_function_that_fails_or_returns_something_else_is_told(own, function, reason):
    with pytest.raises(UserError, match=reason) as failure:
        resolve(f"{own}:{function}").build(3)
    assert "\n" not in str(failure.value)


def test_a_module_that_ends_the_process_where_it_is_imported_is_told(own):
    with pytest.raises(UserError, match="importing mine.script fails: SystemExit: 0"):
        resolve("mine.script:Small")


def test_a_network_that_was_frozen_to_be_used_can_be_trained(own):
    assert all(each.requires_grad for each in resolve(f"{own}:frozen").build(3).parameters())
    assert [each.requires_grad for each in resolve(f"{own}:half_frozen").build(3).fc.parameters()] == [False, True]


def test_a_size_that_patches_do_not_divide_is_told():
    with pytest.raises(UserError, match=r"vit_b_16 cannot be built for images of 50 pixels \(--image_size\): Assert"):
        resolve("torchvision:vit_b_16", 50).build(3)


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"pip install 'deeppatch\[models\]'"):
        resolve("timm:resnet18")


def test_the_names_of_the_zoo_are_those_of_its_functions():
    assert sorted(module.ARCHITECTURES) == sorted(ARCHITECTURE_NAMES)
    assert sorted(module.LIBRARIES) == sorted(LIBRARIES)
    assert model_slug("timm:resnet18.a1_in1k") == "timm-resnet18.a1_in1k"


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serve a folder on this machine; downloads go into an empty folder."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    serving = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    yield folder, f"http://127.0.0.1:{serving.server_address[1]}"
    serving.shutdown()


def published(folder: Path, network: nn.Module) -> str:
    """Save weights under a name that ends in the start of their SHA-256, as torchvision does."""
    path = folder / "weights.pth"
    torch.save(network.state_dict(), path)
    name = f"weights-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth"
    path.rename(folder / name)
    return name


def test_published_weights_of_a_library_are_downloaded_once_and_checked(server, monkeypatch):
    folder, url = server
    found = resolve("torchvision:squeezenet1_1")
    network = found.build(1000)
    name = published(folder, network)
    entry = Entry(f"{url}/{name}", 58.2, *found.normalisation)
    monkeypatch.setitem(found.published, "imagenet", entry)
    monkeypatch.setattr("deeppatch.zoo.loading.resolve", lambda name: found)
    model = load_classifier("torchvision:squeezenet1_1", "imagenet")
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in model.network.state_dict().items())
    assert model.normalize.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    (folder / name).unlink()
    assert weights.fetch_entry(entry).is_file(), "the local copy"


def test_weights_on_the_hub_are_read_or_their_absence_is_told(tmp_path, monkeypatch):
    import huggingface_hub
    from safetensors.torch import save_file

    network = resolve("timm:mobilenetv3_small_050").build(1000)
    entry = resolve("timm:mobilenetv3_small_050").published["imagenet"]
    assert entry.repository
    file = tmp_path / "model.safetensors"
    save_file(network.state_dict(), file)
    asked = []

    def download(repository: str, name: str) -> str:
        asked.append((repository, name))
        return str(file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    model = load_classifier("timm:mobilenetv3_small_050", "imagenet")
    assert asked == [(entry.repository, "model.safetensors")]
    assert torch.equal(model.network.conv_stem.weight, network.conv_stem.weight)

    def absent(repository: str, name: str) -> str:
        raise OSError("offline\nnow")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", absent)
    with pytest.raises(DownloadFailed, match=r"\(offline now\); give a copy with --weights FILE"):
        load_classifier("timm:mobilenetv3_small_050", "imagenet")
