"""Time what one filter's exact score costs, in several ways side by side, and extrapolate to a whole ranking.

python benchmarks/assess.py [-m resnet32a] [--weights FILE] [--images 256] [--sweeps 3] [--device cpu|cuda]

Each round takes one convolution of the network and times every way on filters of it, one way after the other, in an
order that changes; a sweep is one round for each convolution. A ranking takes the sum over layers of width times the
time of a filter there. Without --weights, weights and images are random: the time does not depend on them. That of
successive elimination does: it is timed with --weights only, on the val images of -d, among all filters of the layer.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import machine
import pandas as pd
import torch
from captum.attr import LayerFeatureAblation
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import functional as transforms
from tqdm import tqdm

from deeppatch import runtime
from deeppatch.data import sources
from deeppatch.data.corruptions import SIGMAS, GaussianBlur
from deeppatch.data.images import Images
from deeppatch.data.splits import split, subset
from deeppatch.data.views import expand, ordered
from deeppatch.graph.hooks import convolutions, hooked
from deeppatch.graph.network_graph import Graph
from deeppatch.localization.ablation import DegradedBatch, graph_ablation, hook_ablation
from deeppatch.localization.elimination import PARTS, margins
from deeppatch.localization.estimates import taylor
from deeppatch.localization.ranking import cut_index
from deeppatch.localization.scoring_run import ScoringRun
from deeppatch.localization.successive_elimination import Elimination, eliminate
from deeppatch.zoo import weights
from deeppatch.zoo.architectures import ARCHITECTURES
from deeppatch.zoo.classifier import Classifier

# how many filters of a layer a round ablates, at most
FILTERS = 8
WORKERS = 2
DELTA, RATIO = 0.1, 0.25
PEAK = "peak"  # multiply-adds a second


class Published(Dataset):  # type: ignore[type-arg]
    """Images that worker processes blur and normalise one by one, as the published tool's loader does."""

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, place: int) -> Tensor:
        image = transforms.to_pil_image(self.pixels[place])
        blurred = transforms.gaussian_blur(image, [13, 13], [0.5 * (1 + place % 6)] * 2)
        return transforms.normalize(transforms.to_tensor(blurred), [0.49] * 3, [0.2] * 3)


class Ways:
    """Every way to score filters of one layer; each returns the seconds that one filter takes per image."""

    def __init__(self, network: nn.Module, pixels: Tensor, images: Tensor, device: torch.device) -> None:
        self.network, self.device = network, device
        self.image_passes: dict[str, int] = {}  # of an elimination, summed over the filters of a layer
        self.batches = [DegradedBatch(images, torch.zeros(len(images), dtype=torch.int64, device=device))]
        self.loader = DataLoader(Published(pixels), batch_size=128, num_workers=WORKERS)
        self.widths = {name: conv.out_channels for name, conv in convolutions(network).items()}
        self.plain = hook_ablation(network, swap=False)(self.batches[0])
        amp = torch.bfloat16 if runtime.has_bfloat16(device) else torch.float32  # as assess --amp chooses
        self.graphs = {
            "ours, fp32": graph_ablation(Graph(network, images[:2]), swap=False),
            "ours, bf16": graph_ablation(Graph(network, images[:2]), swap=False, dtype=torch.bfloat16),
            "ours, --amp": graph_ablation(Graph(network, images[:2]), swap=False, dtype=amp),
        }
        self.prepared = {name: graph(self.batches[0]) for name, graph in self.graphs.items()}
        self.all: dict[str, Callable[[str], float]] = {
            "published: loader blurs image by image, whole pass": self.published,
            "in-memory loop, whole pass": self.in_memory,
            "Captum LayerFeatureAblation": self.captum,
            "ours, fp32": lambda layer: self.ours("ours, fp32", layer),
            "ours, bf16": lambda layer: self.ours("ours, bf16", layer),
            "ours, --amp": lambda layer: self.ours("ours, --amp", layer),
            "taylor (an estimate)": self.taylor,
        }

    @torch.inference_mode()
    def add_elimination(self, parts: list[DegradedBatch]) -> None:
        """Eliminate too, over parts of images in the order of their margins."""
        graph = self.graphs["ours, fp32"]
        images = sum(len(part.labels) for part in parts)
        prepared = [graph(part) for part in parts]

        @torch.inference_mode()
        def eliminated(layer: str) -> float:
            """Eliminate among all filters of a layer; their share of the unedited passes comes on top."""
            shared = runtime.seconds(lambda: [graph(part) for part in parts], self.device) / sum(self.widths.values())
            width, edited = self.widths[layer], iter(prepared)
            state = Elimination.start({layer: width}, {layer: cut_index(width, RATIO, "front")})
            spent = runtime.seconds(
                lambda: eliminate(state, parts, images, lambda _: next(edited), DELTA),
                self.device,
            )
            self.image_passes[layer] = state.image_passes()
            return (spent / width + shared) / images

        self.all[f"ours, eliminating {DELTA:g}, {images} images"] = eliminated

    def published(self, layer: str) -> float:
        """Silence one filter, and read everything anew."""

        def call() -> None:
            with torch.inference_mode():
                for images in self.loader:
                    hook_ablation(self.network, swap=False)(DegradedBatch(images.to(self.device), images))(layer, 0)

        return runtime.seconds(call, self.device) / len(self.loader.dataset)  # type: ignore[arg-type]

    @torch.inference_mode()
    def in_memory(self, layer: str) -> float:
        """Silence a filter in a whole pass over images that lie ready."""
        return runtime.seconds(lambda: self.plain(layer, 0), self.device) / len(self.batches[0].labels)

    def captum(self, layer: str) -> float:
        """Ablate up to FILTERS filters one by one, the others of the layer as one group."""
        images = self.batches[0].degraded[:64]
        conv = self.network.get_submodule(layer)
        groups = torch.arange(self.widths[layer], device=self.device).clamp(max=FILTERS).view(1, -1, 1, 1)
        ablation = LayerFeatureAblation(lambda x: self.network(x)[:, 0], conv)
        passes = min(FILTERS + 1, self.widths[layer]) + 1
        with torch.no_grad():
            spent = runtime.seconds(lambda: ablation.attribute(images, layer_mask=groups), self.device)
        return spent / passes / len(images)

    @torch.inference_mode()
    def ours(self, way: str, layer: str) -> float:
        """Run what an edit changes, for up to FILTERS filters; their share of the unedited pass comes on top."""
        images, edited = len(self.batches[0].labels), self.prepared[way]
        shared = runtime.seconds(lambda: self.graphs[way](self.batches[0]), self.device) / sum(self.widths.values())
        channels = random.Random(0).sample(range(self.widths[layer]), min(FILTERS, self.widths[layer]))  # noqa: S311

        def call() -> None:
            for channel in channels:
                edited(layer, channel).argmax(1)

        return (runtime.seconds(call, self.device) / len(channels) + shared) / images

    def taylor(self, _layer: str) -> float:
        """Take one backward pass for all filters of all layers."""
        with torch.no_grad():
            batches = [DegradedBatch(batch.degraded.clone(), batch.labels.clone()) for batch in self.batches]
        spent = runtime.seconds(lambda: taylor(self.network, batches, lambda: None), self.device)
        return spent / sum(self.widths.values()) / len(self.batches[0].labels)


def multiply_adds(network: nn.Module, image: Tensor) -> tuple[float, float]:
    """Return an image's multiply-adds in convolutions: of a whole pass for each filter, and with prefix sharing.

    With prefix sharing an ablation runs the convolutions behind its own, in the order of their execution.
    """
    spent: dict[str, float] = {}
    with ExitStack() as stack, torch.no_grad():
        for name, conv in convolutions(network).items():
            note = partial(
                lambda name, conv, _inputs, y: spent.update({name: y[0].numel() * conv.weight[0].numel()}), name
            )
            stack.enter_context(hooked(conv, note))
        network(image)
    names = list(spent)
    widths = [convolutions(network)[name].out_channels for name in names]
    behind = [sum(spent[later] for later in names[place + 1 :]) for place in range(len(names))]
    return sum(widths) * sum(spent.values()), sum(w * b for w, b in zip(widths, behind, strict=True))


def measure(ways: Ways, sweeps: int) -> pd.DataFrame:
    """Return the seconds of a whole ranking per image, one row a sweep, one column a way, and the machine's peak."""
    draw = random.Random(0)  # noqa: S311  the order of the rounds, no secret
    rows = []
    for sweep in range(1, sweeps + 1):
        totals: dict[str, float] = defaultdict(float)
        for layer in tqdm(draw.sample(list(ways.widths), len(ways.widths)), desc=f"sweep {sweep}", leave=False):
            for way in draw.sample(list(ways.all), len(ways.all)):
                totals[way] += ways.widths[layer] * ways.all[way](layer)
        rows.append({**{way: totals[way] for way in ways.all}, PEAK: machine.peak(ways.device)})
    return pd.DataFrame(rows)


def subject(options: argparse.Namespace) -> tuple[Classifier, Images]:
    """Return the network to rank and images: --weights with the val images of -d, or both at random."""
    network = ARCHITECTURES[options.model](10)
    if options.weights is None:
        pixels = torch.randint(0, 256, (max(options.images, options.loaded), 3, 32, 32), dtype=torch.uint8)
        return Classifier(network, [0.49] * 3, [0.2] * 3), Images(pixels, torch.zeros(len(pixels), dtype=torch.int64))
    state = weights.read(options.weights)
    mean, std = (state.pop(f"normalize.{key}").flatten().tolist() for key in ("mean", "std"))
    weights.load_network(network, {k.removeprefix("network."): v for k, v in state.items()}, options.weights)
    return Classifier(network, mean, std), split(sources.load(options.dataset, options.data_dir, 2021), 2021).val


def parser() -> argparse.ArgumentParser:
    """Return the parser of this benchmark's options."""
    found = machine.parser(__doc__ or "")
    found.add_argument("-m", "--model", choices=sorted(ARCHITECTURES), default="resnet32a")
    found.add_argument("--weights", type=Path, help="what pretrain left: weights.safetensors (default: random)")
    found.add_argument("-d", "--dataset", default="cifar10", help="whose val images go with --weights")
    found.add_argument("--data_dir", type=Path, default=Path("data"))
    found.add_argument("--images", type=int, default=256, help="images in memory (default: 256)")
    found.add_argument("--loaded", type=int, default=512, help="images that the published way loads (default: 512)")
    found.add_argument(
        "--eliminated", type=int, default=150, help="val images that an elimination blurs six times (default: 150)"
    )
    found.add_argument("--sweeps", type=int, default=3, help="rounds of each layer (default: 3)")
    return found


def main() -> None:
    """Print a table, and write it as CSV."""
    options = parser().parse_args()
    device = machine.prepared(options.device)
    model, source = subject(options)
    network = model.to(device, memory_format=torch.channels_last).eval().network  # type: ignore[call-overload]
    source = source.to(device)
    blur = GaussianBlur(SIGMAS)
    pixels = source.pixels[: options.loaded].cpu()
    images = model.normalize(next(iter(expand(source, blur, options.images)))[0])
    ways = Ways(network, pixels, images, device)
    if options.weights:
        few = subset(source, options.eliminated, 2021, options.dataset)
        view = expand(few, blur, options.images)
        view = ordered(view, margins(model, view).argsort(stable=True))
        parts = dataclasses.replace(view, batch_size=-(-len(view.index) // PARTS))
        ways.add_elimination(list(ScoringRun(model, few, blur).batches(parts, paired=False)))
    for way in ways.all.values():  # what the first calls set up is not timed
        way(next(iter(ways.widths)))
    found = measure(ways, options.sweeps)
    whole, shared = multiply_adds(network, images[:1])
    peaks = found.pop(PEAK)
    published, in_memory = (found[way] for way in list(ways.all)[:2])
    table = pd.DataFrame({
        "us_a_filter_and_image": 1e6 * found.median() / sum(ways.widths.values()),
        "times_published": (1 / found.div(published, axis=0)).median(),
        "times_in_memory": (1 / found.div(in_memory, axis=0)).median(),
        "minutes_for_6000_images": 100 * found.median(),
    })  # fmt: skip
    print(f"{machine.heading(device)}; {options.model}, {sum(ways.widths.values())} filters, {len(ways.widths)} layers")
    print(table.to_string(float_format="%.3g"))
    if ways.image_passes:
        every = 6 * options.eliminated * sum(ways.widths.values())
        spared = every / sum(ways.image_passes.values())
        print(f"successive elimination reads {spared:.2f} times fewer images than exact scores")
    bound = shared / peaks
    print(f"multiply-adds per image: {whole:.3g} in whole passes, {shared:.3g} with shared prefixes; a matrix product "
          f"runs {peaks.min():.3g} to {peaks.max():.3g} a second: bound {100 * bound.median():.3g} minutes, ours "
          f"in fp32 takes {(found['ours, fp32'] / bound).median():.2f} times that (median of sweeps)")  # fmt: skip
    kind = f"val images of {options.dataset}" if options.weights else "random images"
    counts = f"{options.images} in memory, {options.loaded} loaded"
    table = table.rename_axis("way").reset_index().assign(bound_seconds=bound.median())
    machine.write(table, options, device, images=f"{kind}: {counts}")


if __name__ == "__main__":
    main()
