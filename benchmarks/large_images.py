"""Repair a ResNet-18 of one's own on 224-pixel images against noise and JPEG: does clean accuracy stay?

python benchmarks/large_images.py [--train N] [--test N] [--epochs N] [--correction_epochs N] [--data_dir FOLDER]

Four classes of CIFAR-10 are enlarged to 224 pixels and saved as JPEG files in a folder. There the stages run one after
the other: pretrain (torchvision's resnet18, trained from scratch), assess by taylor, correct twice, evaluate. What is
finished is not run again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import machine
import torch
from PIL import Image
from repair import collected, left

from deeppatch.data import sources

CLASSES = ("airplane", "automobile", "cat", "ship")
SIZE = 224
PATCH = ["-f", "taylor", "-c", "patch", "--crt_type", "replace"]


def main() -> None:
    """Make the folder, run the stages, and write the table that evaluate left."""
    options = parser().parse_args()
    folder = options.folder
    if not (folder / "test").is_dir():
        make_folder(options)
    dataset = f"folder:{folder}"
    shared = ["-m", options.model, "-d", dataset, "-b", "16", "--device", options.device, "-r"]
    shared += ["--output_dir", str(options.output_dir)]
    noise = ["-n", options.noise]
    training = ["--epochs", str(options.correction_epochs), "--lr", "0.01"]
    machine.run_stage("pretrain", [*shared, "--train", "--epochs", str(options.epochs), "--lr", "0.02", *noise])
    options.dataset = dataset
    base = ["--base", str(left(options, "pretrain", machine.SEED) / "weights.safetensors")]
    machine.run_stage("assess", [*shared, *noise, "-f", "taylor", *base])
    ranking = left(options, "assess-taylor", machine.SEED) / "ranking.json"
    machine.run_stage("correct", [*shared, *noise, *PATCH, *training, *base, "--ranking", str(ranking)])
    machine.run_stage("correct", [*shared, *noise, "-c", "finetune", *training, *base])
    machine.run_stage("evaluate", [*shared, *noise, *PATCH, *base, "--max_clean_drop", "2"])
    frame, revision, count = collected(options, machine.SEED)
    images = f"{options.train} train and {count} test images of {SIZE} pixels, {len(CLASSES)} classes of CIFAR-10"
    kept = ["seed", "network", "clean", "blurred", "mixed", "repaired", "newly wrong"]
    frame = frame[[name for name in frame.columns if name in kept or "/" in name or "-" in name]]
    machine.write(frame, options, machine.prepared(options.device), images=images, revision=revision)


def parser() -> argparse.ArgumentParser:
    """Return the parser of this benchmark's options."""
    found = machine.parser(__doc__ or "")
    found.add_argument("-m", "--model", default="torchvision:resnet18", metavar="NAME")
    found.add_argument("-n", "--noise", default="gaussian_noise,jpeg_compression", metavar="NAMES")
    found.add_argument("--train", type=int, default=400, metavar="N", help="training images (default: 400)")
    found.add_argument("--test", type=int, default=200, metavar="N", help="test images (default: 200)")
    found.add_argument("--epochs", type=int, default=40, metavar="N", help="of the network (default: 40)")
    found.add_argument("--correction_epochs", type=int, default=5, metavar="N", help="of patch and fine-tuning")
    found.add_argument("--folder", type=Path, default=Path("output/large-images"), metavar="FOLDER")
    found.add_argument("--data_dir", type=Path, default=Path("data"), metavar="FOLDER", help="where CIFAR-10 lies")
    found.add_argument("--output_dir", type=Path, default=Path("output"), metavar="FOLDER")
    return found


def make_folder(options: argparse.Namespace) -> None:
    """Save some classes of CIFAR-10, enlarged, as FOLDER/{train,test}/CLASS/NUMBER.jpg."""
    source = sources.load("cifar10", options.data_dir, machine.SEED)
    for part, count in (("train", options.train), ("test", options.test)):
        images = getattr(source, part)
        for name in CLASSES:
            place = options.folder / part / name
            place.mkdir(parents=True, exist_ok=True)
            chosen = (images.labels == source.classes.index(name)).nonzero().flatten()[: count // len(CLASSES)]
            for number, pixels in enumerate(images.pixels[chosen]):
                assert isinstance(pixels, torch.Tensor)
                image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
                image.resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(place / f"{number:03}.jpg", quality=95)


if __name__ == "__main__":
    main()
