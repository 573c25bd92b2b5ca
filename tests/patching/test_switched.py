"""The switched model: an image's logits do not depend on its neighbours, on any network of the zoo."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from deeppatch.artifacts import state_digest
from deeppatch.data.corruptions import SIGMAS, GaussianBlur
from deeppatch.errors import StaleArtifact, UserError
from deeppatch.graph.hooks import convolutions
from deeppatch.localization.ranking import random_ranking
from deeppatch.patching.attachment import attach
from deeppatch.patching.patch_file import Patch, apply, extract
from deeppatch.patching.router import FEATURES, Router
from deeppatch.patching.switched import SwitchedModel
from deeppatch.zoo.architectures import ARCHITECTURES
from deeppatch.zoo.classifier import Classifier

KINDS = ["replace", "crtunit"]
ROUTERS = ["probe", "flips"]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def norms(module: nn.Module) -> list[nn.BatchNorm2d]:
    return [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]


@torch.no_grad()
def sane(model: Classifier, pixels: Tensor) -> Classifier:
    """Set the normalisations' statistics to those of a batch, so that activations neither vanish nor explode."""
    for norm in norms(model):
        norm.momentum = 1.0
    model.train()(pixels)
    for norm in norms(model):
        norm.momentum = 0.1
    return model.eval()


@torch.no_grad()
def random_patch(model: Classifier, kind: str, ratio: float, pixels: Tensor, strength: float = 1.0) -> Patch:
    """Return a patch with random filters at random places, and statistics of its own; the model is as before.

    Strong corrections, layer upon layer, amplify what rounding leaves: `strength` weakens those of deep networks.
    """
    torch.manual_seed(3)
    base = state_digest(model.state_dict())
    widths = {name: conv.out_channels for name, conv in convolutions(model.network).items()}
    channels = random_ranking(widths, 1).choose(ratio, "front", 1)
    patched = copy.deepcopy(model)
    attachment = attach(patched.network, channels, kind, patched.normalize(pixels[:2]))
    for unit in attachment.units.values():
        if kind == "replace":
            unit.rows.normal_(std=unit.original.weight.std().item() + 0.01)
        else:
            unit.unit[-1].weight.normal_(std=strength * len(unit.channels) ** -0.5)
    attachment.enter_training()
    for norm in norms(patched):
        norm.momentum = 1.0
    patched(pixels)
    return extract(attachment, base)


def scored(switched: SwitchedModel, kind: str, pixels: Tensor) -> Router:
    """Return a router with weights of every sign whose threshold halves these samples: no score is near it."""
    with torch.no_grad():
        features = FEATURES[kind](switched.run_stem(pixels)[1]).double()
    spread = features.std(0) + 1e-3
    weight = torch.randn(features.shape[1], generator=torch.Generator().manual_seed(1), dtype=torch.float64) / spread
    scores = (features @ weight).sort().values
    middle = slice(len(scores) // 3, len(scores) - len(scores) // 3)
    gaps = scores.diff()[middle]
    place = middle.start + int(gaps.argmax())
    assert gaps.max() > 1e-4 * (scores[-1] - scores[0])
    return Router(kind, weight, 0.0, ((scores[place] + scores[place + 1]) / 2).item())


@torch.no_grad()
def check_routes(model: Classifier, patch: Patch, pixels: Tensor, kind: str, sizes: tuple[int, ...]) -> None:
    """Check each image's logits alone and in shuffled mixed batches of every size, against both networks."""
    patched = copy.deepcopy(model)
    apply(patched, patch, pixels[:2])
    answers = torch.stack([model(pixels), patched(pixels)])
    assert (answers[0] - answers[1]).abs().amax(1).min() > 3e-4, "the paths do not differ"

    switched = SwitchedModel(model, patch, pixels[:2])
    switched.router = scored(switched, kind, pixels)
    count = len(pixels)
    _, _, moved = switched.route(pixels)
    assert count // 4 <= int(moved.sum()) <= count - count // 4, "both paths are taken"
    expected = answers[moved.long(), torch.arange(count)]

    draw = torch.Generator().manual_seed(4)
    for size in sizes:
        index = torch.arange(max(size, count)) % count
        stream = index if size == 1 else index[torch.randperm(len(index), generator=draw)]
        for places in stream.split(size):
            logits, scores, moved_here = switched.route(pixels[places])
            assert torch.equal(moved_here, moved[places])
            torch.testing.assert_close(logits, expected[places], **CLOSE)
            assert torch.equal(logits.argmax(1), expected[places].argmax(1))
            assert scores.shape == (len(places),)
    assert switched(pixels[:3]).shape == (3, answers.shape[2])


EXACT = ("mobilenet", "shufflenet_g2", "resnet18_imagenet_stem", "resnet50")
# one network of each family; the others repeat their operations
FAMILIES = {"resnet8", "resnet20a", "mobilenetv2_x0_5", "shufflenetv2_x1_0", "simcnn_x0_25", "rescnn_x0_25"}
# but for width, dropout, depth or normalisation these are simcnn_x0_25, rescnn_x0_25, resnet8 and resnet20a
SAME = {
    "simcnn", "simcnn_poorfit", "simcnn_x0_125", "rescnn", "rescnn_poorfit", "resnet20", "resnet32", "resnet32a",
    "resnet44a", "resnet56a", "resnet110a", "simcnn_bn", "rescnn_bn",
}  # fmt: skip
NAMES = [name for name in ARCHITECTURES if name not in SAME]


@pytest.fixture(
    scope="module",
    params=[name if name in FAMILIES else pytest.param(name, marks=pytest.mark.slow) for name in NAMES],
)
def zoo(request) -> tuple[Classifier, Tensor]:
    """A network of the zoo with random weights, and clean images, 12 or of a large one 6, with as many blurred ones."""
    torch.manual_seed(6)
    model = Classifier(ARCHITECTURES[request.param](10), [0.49, 0.48, 0.45], [0.2, 0.2, 0.2])
    count = 6 if request.param in EXACT else 12
    coarse = nn.functional.interpolate(torch.rand(count, 3, 8, 8), size=32, mode="bilinear")
    clean = (0.6 * coarse + 0.4 * torch.rand(count, 3, 32, 32)).clamp(0, 1)
    pixels = torch.cat([clean, GaussianBlur(SIGMAS)(clean, 1 + torch.arange(count) % 6)])
    if request.param in EXACT:  # in float32 their answers to an image alone and in a batch differ by up to 1e-4
        model, pixels = model.double(), pixels.double()
    return sane(model.to(memory_format=torch.channels_last), pixels), pixels


def test_logits_do_not_depend_on_the_batch_on_any_network(zoo):
    model, pixels = zoo
    check_routes(model, random_patch(model, "replace", 0.25, pixels), pixels, "probe", (1, 64, 256))


def test_correction_units_route_as_well_on_any_network(zoo):
    model, pixels = zoo
    check_routes(model, random_patch(model, "crtunit", 0.25, pixels, strength=0.1), pixels, "probe", (1, 64))


@torch.no_grad()
def test_in_float32_routing_rounds_no_more_than_the_two_networks_do(zoo):
    model, pixels = zoo[0].float(), zoo[1].float()
    patch = random_patch(model, "replace", 0.25, pixels)
    patched = copy.deepcopy(model)
    apply(patched, patch, pixels[:2])
    plain = torch.stack([model(pixels), patched(pixels)])
    exact = torch.stack([copy.deepcopy(network).double()(pixels.double()) for network in (model, patched)])
    switched = SwitchedModel(model, patch, pixels[:2])
    switched.router = scored(switched, "probe", pixels)
    logits, _, moved = switched.route(pixels)
    error = (logits - exact[moved.long(), torch.arange(len(pixels))]).abs().max()
    assert error < 2 * (plain - exact).abs().max()


@pytest.fixture
def mixed(tiny, images, blur) -> tuple[Classifier, Tensor]:
    clean = images.pixels[:12].float() / 255
    pixels = torch.cat([clean, blur(clean, 1 + torch.arange(12) % 6)])
    return sane(tiny, pixels), pixels


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ratio", [0.25, 0.1, 1.0])
def test_logits_do_not_depend_on_the_batch_for_every_kind(mixed, kind, router, ratio):
    """At a ratio of 0.1 only the last convolution is patched, behind which there is no normalisation."""
    model, pixels = mixed
    patch = random_patch(model, kind, ratio, pixels)
    assert list(patch.channels) == (["conv3"] if ratio == 0.1 else ["conv1", "conv2", "conv3"])
    check_routes(model, patch, pixels, router, (1, 7, 64, 256))


@pytest.mark.parametrize("kind", KINDS)
def test_first_convolution_may_be_too_narrow_to_be_patched(kind):
    torch.manual_seed(2)
    model = Classifier(ARCHITECTURES["resnet8"](10), [0.5] * 3, [0.2] * 3)
    pixels = torch.rand(24, 3, 32, 32)
    patch = random_patch(sane(model, pixels), kind, 0.05, pixels)
    assert next(iter(patch.channels)).startswith("layer2")
    assert len(patch.channels["layer2.0.conv1"]) == 1
    for router in ROUTERS:
        check_routes(model, patch, pixels, router, (1, 64))


class PreActivation(nn.Module):
    """A network whose first convolution is read by a normalisation and by the shortcut around it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = x + self.conv2(torch.relu(self.bn1(x)))
        return self.fc(torch.relu(self.bn2(x)).mean((2, 3)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("router", ROUTERS)
@torch.no_grad()
def test_a_normalisation_that_cannot_be_folded_stays_and_the_router_sees_it(mixed, kind, router):
    torch.manual_seed(8)
    _, pixels = mixed
    model = sane(Classifier(PreActivation(), [0.5] * 3, [0.2] * 3), pixels)
    patch = random_patch(model, kind, 0.5, pixels)
    check_routes(model, patch, pixels, router, (1, 7, 64))
    patched = copy.deepcopy(model)
    apply(patched, patch, pixels[:2])
    maps = SwitchedModel(model, patch, pixels[:2]).run_stem(pixels)[1]
    for network, seen in ((model.network, maps.original), (patched.network, maps.replaced)):
        normed = network.bn1(network.conv1(model.normalize(pixels)))
        torch.testing.assert_close(seen, normed[:, patch.channels["conv1"]], **CLOSE)


def multiply_adds(call) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("ratio", [0.25, 0.1])
@torch.no_grad()
def test_every_sample_runs_through_one_path_and_the_shared_part_runs_once(mixed, ratio):
    """Beyond the plain network there are the filters of the first patched layer that the router looks at."""
    model, pixels = mixed
    patch = random_patch(model, "replace", ratio, pixels)
    switched = SwitchedModel(model, patch, pixels[:2])
    switched.router = scored(switched, "probe", pixels)
    first, chosen = next(iter(patch.channels.items()))
    conv = model.network.get_submodule(first)
    side = 12 // conv.stride[0]
    more = 2 * len(chosen) * conv.in_channels * 9 * side**2
    for threshold in (switched.router.threshold.item(), -1e9, 1e9):
        switched.router.threshold.fill_(threshold)
        extra = multiply_adds(lambda: switched(pixels)) - multiply_adds(lambda: model(pixels))
        assert extra == len(pixels) * more


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("ratio", "first", "norm"), [(0.25, "conv1", "bn1"), (0.1, "conv3", None)])
@torch.no_grad()
def test_router_sees_both_versions_behind_their_own_norms(mixed, kind, ratio, first, norm):
    model, pixels = mixed
    patch = random_patch(model, kind, ratio, pixels)
    patched = copy.deepcopy(model)
    apply(patched, patch, pixels[:2])
    seen = []
    for network in (model.network, patched.network):
        handle = network.get_submodule(norm or first).register_forward_hook(lambda _m, _i, y: seen.append(y.clone()))
        network(model.normalize(pixels))
        handle.remove()
    crossing, maps = SwitchedModel(model, patch, pixels[:2]).run_stem(pixels)
    channels = patch.channels[first]
    torch.testing.assert_close(maps.original, seen[0][:, channels], **CLOSE)
    torch.testing.assert_close(maps.replaced, seen[1][:, channels], **CLOSE)
    assert (maps.original - maps.replaced).abs().max() > 0.01
    assert torch.equal(maps.pixels, pixels)
    if first == "conv1":
        assert torch.equal(crossing[0], model.normalize(pixels))


@pytest.fixture
def switched(mixed) -> SwitchedModel:
    model, pixels = mixed
    found = SwitchedModel(model, random_patch(model, "replace", 0.25, pixels), pixels[:2])
    found.router = scored(found, "probe", pixels)
    return found


@torch.no_grad()
def test_batch_vote_takes_one_path_for_all_by_majority(switched, mixed):
    model, pixels = mixed
    single, scores, moved = switched.route(pixels)
    yes, no = moved.nonzero().squeeze(1), (~moved).nonzero().squeeze(1)
    patched = copy.deepcopy(model)
    apply(patched, random_patch(model, "replace", 0.25, pixels), pixels[:2])
    switched.vote = True
    for places, path in (
        (torch.cat([yes[:3], no[:2]]), True),
        (torch.cat([yes[:2], no[:3]]), False),
        (torch.cat([yes[:2], no[:2]]), False),  # a tie is no majority
        (yes[:1], True),
        (no[:4], False),
    ):
        logits, voted_scores, voted = switched.route(pixels[places])
        assert voted.tolist() == [path] * len(places)
        torch.testing.assert_close(voted_scores, scores[places], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(logits, (patched if path else model)(pixels[places]), **CLOSE)
    switched.vote = False
    torch.testing.assert_close(switched(pixels), single, **CLOSE)


@torch.no_grad()
def test_all_samples_may_take_one_path(switched, mixed):
    _, pixels = mixed
    for threshold, path in ((-1e9, True), (1e9, False)):
        switched.router.threshold.fill_(threshold)
        logits, scores, moved = switched.route(pixels)
        assert moved.tolist() == [path] * len(pixels)
        assert logits.isfinite().all()
    switched.router.threshold.copy_(scores[0])
    assert not switched.route(pixels)[2][0], "a sample at the threshold stays on the original path"


@torch.no_grad()
def test_without_a_router_the_error_says_so(mixed):
    model, pixels = mixed
    bare = SwitchedModel(model, random_patch(model, "replace", 0.25, pixels), pixels[:2])
    with pytest.raises(UserError, match="router"):
        bare(pixels)
    assert bare.run_stem(pixels)[1].original.shape[0] == 24, "calibration needs none"


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ratio", [0.25, 0.1])
def test_what_is_passed_in_is_not_changed(mixed, kind, ratio):
    model, pixels = mixed
    patch = random_patch(model, kind, ratio, pixels)
    content, modules = patch.to_bytes(), dict(model.named_modules())
    state, modes = state_digest(model.state_dict()), [module.training for module in model.modules()]
    made = SwitchedModel(model, patch, pixels[:2])
    made.router = scored(made, "probe", pixels)
    made.train()
    with torch.no_grad():
        made(pixels)
        for parameter in [*made.parameters(), *made.buffers()]:
            parameter.zero_()
    assert state_digest(model.state_dict()) == state, "memory is shared"
    assert patch.to_bytes() == content
    assert {name: id(module) for name, module in model.named_modules()} == {n: id(m) for n, m in modules.items()}
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert hooks(model) == hooks(made) == 0


@pytest.mark.parametrize("ratio", [0.25, 0.1])
def test_a_model_in_training_mode_is_not_changed(mixed, ratio):
    """With an unpatched first convolution the way to the first patched one leads through a normalisation."""
    model, pixels = mixed
    patch = random_patch(model, "replace", ratio, pixels)
    model.train()
    before = state_digest(model.state_dict())
    SwitchedModel(model, patch, pixels[:2])
    assert state_digest(model.state_dict()) == before
    assert all(module.training for module in model.modules())


@torch.no_grad()
def test_nothing_of_a_pass_is_left_behind(switched, mixed):
    _, pixels = mixed
    before, state = switched(pixels), state_digest(switched.state_dict())
    fc, switched.patched.fc = switched.patched.fc, nn.Linear(1, 1)
    with pytest.raises(RuntimeError):
        switched(pixels)
    switched.patched.fc = fc
    assert torch.equal(switched(pixels), before)
    assert state_digest(switched.state_dict()) == state
    assert hooks(switched) == 0


@torch.no_grad()
def test_a_copy_routes_as_the_original_does(switched, mixed):
    _, pixels = mixed
    twin = copy.deepcopy(switched)
    assert torch.equal(twin(pixels), switched(pixels))
    for parameter in twin.patched.parameters():
        parameter.zero_()
    assert not torch.equal(twin(pixels), switched(pixels))


def test_the_patch_of_another_model_is_refused(mixed):
    model, pixels = mixed
    patch = random_patch(model, "replace", 0.25, pixels)
    with torch.no_grad():
        model.network.fc.bias.add_(1)
    with pytest.raises(StaleArtifact, match="base"):
        SwitchedModel(model, patch, pixels[:2])
