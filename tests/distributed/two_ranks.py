"""What tests/test_parallel.py has two ranks do, and one process as well."""

from __future__ import annotations

import copy
import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2] / "src"))

import torch
from torch import nn

from deeppatch import metrics, runtime, training
from deeppatch.artifacts import Checkpoint
from deeppatch.data import views
from deeppatch.data.corruptions import SIGMAS, GaussianBlur
from deeppatch.data.sources import Images
from deeppatch.distributed import data_parallel, launch, ranks
from deeppatch.localization.ablation import CorrectCounts, DegradedBatch, count_correct, hook_ablation
from deeppatch.localization.successive_elimination import Elimination, eliminate
from deeppatch.patching.training import fit_patch
from deeppatch.retrain.finetune import fit_all
from deeppatch.zoo.classifier import Classifier
from deeppatch.zoo.resnet_cifar import CifarResNet

RATES = training.SGDSettings(lr=0.05)
CHANNELS = {"layer1.0.conv1": [1, 3, 6], "layer2.0.conv2": [0, 4, 30]}


class Wide(nn.Module):
    """Turns to double precision, in which rounding hides nothing."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.double()


def network() -> Classifier:
    torch.manual_seed(3)
    inner = CifarResNet(1, 5)
    inner.fc = nn.Sequential(nn.Dropout(), inner.fc)
    model = Classifier(inner, [0.4, 0.5, 0.6], [0.2, 0.25, 0.3])
    model.normalize = nn.Sequential(Wide(), model.normalize)
    return model.double().to(memory_format=torch.channels_last)


def pictures() -> Images:
    draw = torch.Generator().manual_seed(5)
    return Images(torch.randint(0, 256, (35, 3, 12, 12), generator=draw, dtype=torch.uint8), torch.arange(35) % 5)


def work(folder: Path) -> dict[str, Any]:
    """Train and measure in every way that ranks share; the result must not depend on how many there are."""
    images, blur = pictures(), GaussianBlur(SIGMAS)
    streams = [views.Shuffled(images, 17, 3, epoch, blur, augment=True) for epoch in range(2)]  # the last batch has one
    plain = [[(views.to_float(images.pixels[s]), images.labels[s]) for s in (slice(9), slice(9, 10), slice(10, 35))]]
    val = views.append(images, blur, 24)
    seen: list[torch.Tensor] = []

    def validate(model: nn.Module) -> float:
        seen.append(training.predict(model, val))
        return metrics.accuracy(seen[-1], val.labels)

    found: dict[str, Any] = {}
    for name, epochs in (("divided", streams), ("plain", plain)):
        torch.manual_seed(1)
        tuned, history = fit_all(network(), epochs, validate, settings=RATES)
        found[f"finetune {name}"] = tuned.state_dict()
        found[f"finetune {name} history"] = torch.tensor([history.loss, history.accuracy])
        found[f"random state after {name}"] = torch.rand(3)
    for kind in ("replace", "crtunit"):
        torch.manual_seed(1)
        example = views.to_float(images.pixels[:2])
        patch = fit_patch(network(), CHANNELS, kind, streams, validate, example, settings=RATES)
        found[kind] = patch.tensors
        history = patch.history
        found[f"{kind} history"] = torch.tensor([history.loss, history.accuracy])
    found["predictions"] = torch.stack(seen)

    found.update(localized(images, blur))
    torch.manual_seed(1)
    checkpoint = Checkpoint(folder / "checkpoint.pt", {}, resume=True, writes=runtime.rank() == 0)
    fit_all(network(), streams[:1], validate, settings=RATES, checkpoint=checkpoint)
    ranks.barrier()
    found["checkpoint keys"] = sorted(checkpoint.load()["model"])
    return found


def localized(images: Images, blur: GaussianBlur) -> dict[str, Any]:
    """Count and eliminate under the edit of every filter, once from the start and once from the midst of a sample."""
    torch.manual_seed(4)
    network = CifarResNet(1, 5).eval()
    first, second, third = "conv1", "layer1.0.conv1", "layer3.0.conv2"
    filters = {first: range(8), second: [7, 2, 3], third: range(12)}
    samples = [DegradedBatch(pixels, labels) for pixels, labels in views.append(images, blur, 100)]
    with torch.no_grad():  # so that several classes are predicted
        network.fc.bias -= network(samples[0].degraded).mean(0)
    ablation, costs = hook_ablation(network, swap=False), {first: 5, second: 2, third: 1}
    begun = CorrectCounts(current={first: [1, 1], second: [1, 1, 1]})
    eliminations = [Elimination.start({first: 8, third: 12}, {first: 2, third: 3}) for _ in range(2)]
    eliminations[1].current = {first: [torch.ones(100, dtype=torch.bool)] * 3}
    ticks: list[str] = []
    for each in eliminations:
        eliminate(each, samples, 245, ablation, 0.2, tick=ticks.append, costs=costs)
    counted = [
        dataclasses.asdict(count_correct(samples, filters, ablation, counts, tick=ticks.append, costs=costs))
        for counts in (CorrectCounts(), begun)
    ]
    states = {f"{i} {name}": vars(layer) for i, each in enumerate(eliminations) for name, layer in each.layers.items()}
    tensors = {f"{name} {key}": value for name, state in states.items() for key, value in state.items() if key != "k"}
    return {"counted": counted, "layers eliminated": tensors, "asked": len(ticks)}


def _mark(path: Path) -> str:
    with path.open("a") as file:
        file.write(str(runtime.rank()))
    return path.read_text()


def layers() -> dict[str, Any]:
    """Compare normalisation over ranks with torch's own on the whole batch, forward and backward."""
    found: dict[str, Any] = {}
    whole = torch.randn(7, 3, 4, 4, dtype=torch.double, generator=torch.Generator().manual_seed(1)) * 3 + 100
    target = torch.randn(7, 3, 4, 4, dtype=torch.double, generator=torch.Generator().manual_seed(2))
    for momentum in (0.1, None):
        norm = nn.BatchNorm2d(3, momentum=momentum).double()
        nn.init.uniform_(norm.weight)
        norm.weight.data, norm.bias.data = torch.tensor([0.5, 2, 1]).double(), torch.tensor([1, 0, -1]).double()
        alone = copy.deepcopy(norm)
        x = whole.clone().requires_grad_()
        want = alone(x)
        (want * target).sum().backward()
        part = ranks.shard_slice(7, runtime.rank(), runtime.ranks())
        if momentum is None and runtime.ranks() > 1:
            part = slice(0, 7 * runtime.rank())  # rank 0 has nothing
        own = whole[part].clone().requires_grad_()
        with data_parallel.replicated(norm) as replica:
            got = replica(own)
            (got * target[part]).sum().backward()
        assert "forward" not in vars(norm)
        torch.testing.assert_close(got, want[part])
        torch.testing.assert_close(own.grad, x.grad[part])
        torch.testing.assert_close(norm.weight.grad * runtime.ranks(), alone.weight.grad)  # the wrapper averages
        torch.testing.assert_close(norm.bias.grad * runtime.ranks(), alone.bias.grad)
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(norm.state_dict()[name], value)
    half = whole.bfloat16()[ranks.shard_slice(7, runtime.rank(), runtime.ranks())].requires_grad_()
    norm = nn.BatchNorm2d(3)
    with data_parallel.replicated(norm) as replica:
        replica(half).float().square().sum().backward()
    assert half.grad is not None
    found["bfloat16"] = str(half.grad.dtype)
    found["rank"] = (runtime.rank(), runtime.ranks(), runtime.local_ranks())
    found["gathered"] = ranks.all_gather({"rank": runtime.rank()})
    found["first"] = ranks.broadcast_from_rank0(lambda: runtime.rank() + 40)
    marks = Path(os.environ.get("MARKS", os.devnull))  # appended to by each rank; the machine's first comes first
    found["first here"] = ranks.on_local_rank0_first(lambda: _mark(marks))
    found["total"] = ranks.all_reduce_sum(torch.tensor([1.0, runtime.rank()])).tolist()
    found["stack"] = ranks.all_gather_stack(torch.tensor([runtime.rank(), 5])).tolist()
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    place = Path(sys.argv[1])
    with launch.joined_ranks("python src/correct.py"):
        results = {"work": work(place), "layers": layers()}
        torch.save(results, place / f"rank{runtime.rank()}.pt")
        print("one voice", flush=True)
