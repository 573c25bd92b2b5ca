"""Networks of one's own and of libraries in all stages: what works, what falls back, what is refused in one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

NETWORKS = """
import torch
from torch import nn


class Wayward(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.fc = nn.Linear(12, classes)

    def forward(self, x, scale=1.0):
        x = torch.relu(self.norm(self.conv1(x)))
        if x.amax() > 0:
            x = x * scale
        return self.fc(torch.relu(self.conv2(x)).mean((2, 3)))


def flat(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 8), nn.ReLU(), nn.Linear(8, classes))


def depthwise(classes):
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, groups=3), nn.BatchNorm2d(12), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(12, classes))


def headless(classes):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, classes, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def separable(classes):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes))


def signed(classes):
    norm = nn.LayerNorm(8, elementwise_affine=False)
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 8), norm, nn.Linear(8, classes))


def narrow(classes):
    return nn.Sequential(
        nn.Conv2d(3, 8, 32), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8, classes))


class Fixed(nn.Sequential):
    def forward(self, x):
        torch._assert(x.shape[2] == 64, f"Input height ({x.shape[2]}) doesn't match model (64).")
        return super().forward(x)


def for_images_of_64_pixels(classes):
    return Fixed(nn.Flatten(), nn.Linear(64 * 64 * 3, classes))


def transformer(classes):
    import timm

    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=3, num_classes=classes)
"""
RANKED = ["eval -e 1", "select -f taylor"]
PATCHED = [*RANKED, "correct -f taylor --crt_epoch 1", "switch -f taylor"]
NO_FILTER = "no filter can be ranked or patched: "
DEPENDS = "depends on values (symbolically traced variables cannot be used as inputs to control flow)"
FINETUNE = "fine-tune this network instead (correct -c finetune)"


class Own:
    """A bench on small images, and the stages of networks by name."""

    def __init__(self, bench, runs_in) -> None:
        self.bench = bench
        self.runs_in = runs_in

    def ran(self, network: str, *lines: str) -> str:
        """Run stages that must succeed, and return all that they said."""
        return "".join(self.bench.ran(f"{line} -m {network}").out for line in lines)

    def refused(self, network: str, line: str) -> str:
        return self.bench.refused(f"{line} -m {network}")

    def runs(self, slug: str):
        return self.runs_in(self.bench.output / self.bench.slug / slug)


@pytest.fixture(scope="module", autouse=True)
def where_networks_lie(tmp_path_factory):
    """Work in a folder with a module of networks."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "nets_of_mine.py").write_text(NETWORKS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", [*sys.path])
        yield folder
    sys.modules.pop("nets_of_mine", None)


@pytest.fixture
def own(chain, tmp_path, new_bench, runs_in):
    return Own(new_bench(chain.data, tmp_path / "output"), runs_in)


@pytest.fixture(scope="module")
def wayward(chain, tmp_path_factory, new_bench, runs_in):
    """A class of one's own that cannot be traced, ranked, patched and switched; and all that this said."""
    own = Own(new_bench(chain.data, tmp_path_factory.mktemp("wayward") / "output"), runs_in)
    own.said = own.ran("nets_of_mine:Wayward", *PATCHED)
    return own


WAYWARD = "nets_of_mine:Wayward"


def test_a_network_that_cannot_be_traced_is_switched_whole_and_the_cost_is_said(wayward):
    assert (
        f"the network cannot be run as a graph: its forward pass {DEPENDS}; original and patched network are kept "
        "whole, and for every sample the layers before conv1 run twice" in wayward.said
    )
    accuracy = json.loads(wayward.runs("nets_of_mine-Wayward").at(
        "switch-patch-replace-taylor-probe/metrics.json").read_bytes())["accuracy_percent"]  # fmt: skip
    assert list(accuracy) == ["pretrained", "patched always on", "switched", "oracle router"]


@pytest.mark.parametrize("method", ["perfloss", "featswap"])
def test_its_filters_are_ablated_in_whole_passes(wayward, method):
    said = wayward.ran(WAYWARD, f"select -f {method}")
    assert f"cannot be run as a graph: its forward pass {DEPENDS}; every filter takes a full forward pass" in said


@pytest.mark.parametrize(
    "line",
    ["select -f activation", "correct -c finetune --crt_epoch 1", "eval --state corrected -f taylor", "influence -k 2",
     "correct -f taylor --crt_type crtunit --crt_epoch 1"],
)  # fmt: skip
def test_further_stages_take_it_as_any_other(wayward, line):
    wayward.ran(WAYWARD, line)


def test_the_last_layer_is_decomposed(wayward):
    wayward.ran(WAYWARD, "influence -k 3", "decompose validate -k 3", "decompose finetune -k 3 -e 1")


@pytest.mark.parametrize(
    ("line", "reason"),
    [("export -f taylor", "this network cannot be exported: its forward pass"),
     ("modularize --budget 1", "this network cannot be split: its forward pass")],
)  # fmt: skip
def test_what_needs_a_graph_refuses_in_one_line(wayward, line, reason):
    assert wayward.refused(WAYWARD, line).startswith(f"{reason} {DEPENDS}; ")


def test_its_images_are_labelled_and_learnt_from(own):
    own.ran(WAYWARD, "eval -e 1 --train --bias A", "annotate --bias A --budget 4", "relearn --bias A --budget 4 -e 1")


def test_records_and_folders_name_the_network(wayward):
    record = json.loads(wayward.runs("nets_of_mine-Wayward").at("pretrain/run.json").read_bytes())
    assert record["settings"]["model"] == WAYWARD
    assert f"-m {WAYWARD}" in record["command"]


def test_another_function_has_folders_of_its_own_and_the_command_of_an_error_can_be_typed_in(wayward):
    message = wayward.refused("nets_of_mine:separable", "select -f taylor")
    assert "/nets_of_mine-separable/pretrain" in message
    command = message.rpartition("make it with: ")[2]
    assert "-m nets_of_mine:separable" in command
    result = wayward.bench.type_in(f"{command} -e 1 --device cpu")
    assert result.status == 0, result.err


@pytest.mark.parametrize(
    ("name", "said"),
    [("nets_of_mine:Waywrd", "nets_of_mine has no Waywrd (did you mean Wayward?)"),
     ("nets_of_mine:transformr", "nets_of_mine has no transformr (did you mean transformer?)"),
     ("nets_of_yours:Wayward", "there is no module nets_of_yours in "),
     ("torchvision:resnet81", "torchvision has no classifier resnet81 (did you mean resnet18?)"),
     ("timm:convnext_ato", "timm has no network convnext_ato (did you mean convnext_atto?)")],
)  # fmt: skip
def test_a_mistyped_network_is_told(own, name, said):
    assert said in own.refused(name, "eval -e 1")


def test_weights_of_one_s_own_are_read_and_others_are_refused(own):
    import nets_of_mine

    torch.manual_seed(0)
    torch.save({"model": nets_of_mine.Wayward(3).state_dict()}, "mine.pt")
    torch.save(nets_of_mine.Wayward(5).state_dict(), "five.pt")
    own.ran(WAYWARD, "eval --weights mine.pt --mean 0.5 0.5 0.5 --std 0.2 0.2 0.2", "select -f taylor")
    found = own.runs("nets_of_mine-Wayward").at("pretrain/run.json")
    assert Path("mine.pt").resolve().name in "".join(json.loads(found.read_bytes())["inputs"])
    message = own.refused(WAYWARD, "eval --weights five.pt --mean 0.5 0.5 0.5 --std 0.2 0.2 0.2")
    assert message.startswith("five.pt is for 5 classes, the data set has 3")


@pytest.mark.parametrize("method", ["perfloss", "taylor", "activation", "ratioestim"])
@pytest.mark.parametrize(
    ("network", "reason"),
    [("flat", "this network has no nn.Conv2d"), ("depthwise", "of its convolutions, 1 in groups (0)")],
)  # fmt: skip
def test_without_a_convolution_to_patch_ranking_says_why(own, network, reason, method):
    own.ran(f"nets_of_mine:{network}", "eval -e 1")
    assert own.refused(f"nets_of_mine:{network}", f"select -f {method}") == f"{NO_FILTER}{reason}; {FINETUNE}"


@pytest.mark.parametrize(
    ("network", "reason"),
    [("flat", "it has no convolution whose kernels can be dropped"), ("depthwise", "at 0 (Conv2d in groups)"),
     ("transformer", "flatten mixes channels")],
)  # fmt: skip
def test_what_cannot_be_split_is_finetuned(own, network, reason):
    pytest.importorskip("timm")
    name = f"nets_of_mine:{network}"
    own.ran(name, "eval -e 1", "correct -c finetune --crt_epoch 1", "eval --state corrected -c finetune")
    message = own.refused(name, "modularize --budget 1")
    assert message.startswith("this network cannot be split")
    assert reason in message


@pytest.mark.parametrize("line", ["influence -k 2", "eval -e 1 --train --bias A|annotate --bias A --budget 4"])
def test_without_a_linear_last_layer_its_readers_say_why(own, line):
    *before, last = line.split("|")
    own.ran("nets_of_mine:headless", *(before or ["eval -e 1"]))
    message = own.refused("nets_of_mine:headless", last)
    assert message.startswith("this network does not end in a linear layer that computes its logits")


def test_a_network_for_images_of_another_size_is_refused_before_it_is_trained(own):
    message = own.refused("nets_of_mine:for_images_of_64_pixels", "eval -e 1")
    assert message == "the model fails on float pixels (2, 3, 32, 32): Input height (32) doesn't match model (64)."


def test_a_last_batch_of_one_image_with_maps_of_one_pixel_is_explained(own):
    message = own.refused("nets_of_mine:narrow", "eval -e 1 --val_share 0.3333 --batch_size 19")
    assert message.startswith("a batch has a single image (the last of an epoch, as a rule), and a batch normalisation")


def test_features_without_a_relu_before_the_last_layer_have_shares_of_magnitudes(own):
    said = own.ran(
        "nets_of_mine:signed", "eval -e 1", "influence -k 2", "decompose validate -k 2", "decompose essential -k 2"
    )
    assert "% of the features are negative, because no ReLU comes before the last layer" in said


def test_convolutions_in_groups_run_but_are_counted_out(own):
    said = own.ran("nets_of_mine:separable", *PATCHED, "modularize --budget 1")
    assert "1 of 3 convolutions are neither ranked nor patched: 1 in groups (2)" in said


def test_of_a_vision_transformer_the_patch_embedding_is_patched(own):
    pytest.importorskip("timm")
    said = own.ran("nets_of_mine:transformer", *PATCHED, "select -f perfloss", "influence -k 2")
    assert "patching 6 filters in 1 layers" in said
    assert "1 convolution is ranked and can be patched (patch_embed.proj), with " in said
    assert "kept whole" not in said
    assert "full forward pass" not in said


LIBRARIES = {
    "torchvision:resnet18": "",
    "torchvision:mobilenet_v3_small": "cannot be split",
    "timm:convnext_atto": "cannot be split",
}


@pytest.mark.slow
@pytest.mark.parametrize(("network", "refusal"), LIBRARIES.items())
def test_networks_of_libraries_run_through_the_stages(own, network, refusal):
    if network.startswith("timm"):
        pytest.importorskip("timm")
    stages = [*PATCHED, "select -f activation", "correct -c finetune --crt_epoch 1", "influence -k 2",
              "decompose validate -k 2", "decompose finetune -k 2 -e 1"]  # fmt: skip
    size = f"--image_size {32 if network.endswith('resnet18') else 64}"
    own.ran(network, *(f"{stage} {size}" for stage in stages))
    assert list(own.runs(network.replace(":", "-")).at("").glob("switch-patch-replace-taylor-probe*/metrics.json"))
    if refusal:
        assert refusal in own.refused(network, f"modularize --budget 1 {size}")
    else:
        own.ran(network, f"modularize --budget 1 --sensitivity_images 4 {size}")


@pytest.mark.slow
@pytest.mark.parametrize(("network", "kind"), [("separable", "replace"), ("transformer", "crtunit")])
def test_networks_of_one_s_own_are_exported(own, network, kind):
    """Pooling to one pixel after a correction unit once asked for the layout of an unknown number of samples."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("timm")
    patch = f"-f taylor --crt_type {kind}"
    own.ran(f"nets_of_mine:{network}", *RANKED, f"correct {patch} --crt_epoch 1", f"switch {patch}", f"export {patch}")
