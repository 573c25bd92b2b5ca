"""Find, download, verify and load weights of the zoo's networks."""

from __future__ import annotations

import hashlib
import http.client
import re
import sys
import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from deeppatch.artifacts import DAMAGE
from deeppatch.errors import DownloadFailed, WrongWeights
from deeppatch.zoo.entries import ENTRIES, Entry

# keys of the state dict in checkpoints of whole training runs, and the numpy scalars that such checkpoints contain,
# whose names differ between numpy 1 and numpy 2
NESTED = ("state_dict", "model_state_dict")
NUMPY_SCALARS: list[Any] = [
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    np.dtype, type(np.dtype(np.float64)), type(np.dtype(np.int64)),
]  # fmt: skip


def fetch(url: str) -> Path:
    """Return the local copy of a published file; download it to TORCH_HOME if it is absent.

    The file name contains the start of the file's SHA-256; WrongWeights when the copy does not match.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / url.rsplit("/", 1)[1]
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), hash_in_name(path), progress=sys.stderr.isatty())
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            raise DownloadFailed(
                f"cannot download {url} ({error}); put the file at {path}, give a copy with --weights FILE, "
                "or train the network with --train"
            ) from error
        except RuntimeError as error:
            raise WrongWeights(f"the download of {url} was damaged; run the same command again") from error
    verify(path)
    return path


def fetch_entry(entry: Entry) -> Path:
    """Return the local copy of published weights, from the Hugging Face Hub or from their URL."""
    return fetch_from_hub(entry.repository) if entry.repository else fetch(entry.url)


def fetch_from_hub(repository: str) -> Path:
    """Return the local copy of `model.safetensors` of a repository on the Hugging Face Hub; download it if absent."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, "model.safetensors"))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DownloadFailed(
            f"cannot download the weights of {repository} from the Hugging Face Hub ({reason}); give a copy with "
            "--weights FILE, or train the network with --train"
        ) from error


def hash_in_name(path: Path) -> str | None:
    """Return the hexadecimal digits between the last dash and the dot of a published file's name, or None."""
    match = re.search(r"-([0-9a-f]{8,64})\.\w+$", path.name)
    return match.group(1) if match else None


def verify(path: Path) -> None:
    """Raise WrongWeights when a file's SHA-256 does not begin as its name says; names without a hash are accepted."""
    expected = hash_in_name(path)
    if expected is None:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(expected):
        raise WrongWeights(
            f"{path} is damaged: its SHA-256 begins {found[: len(expected)]}, not {expected}; delete it and run again"
        )


def read(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a .safetensors file or a torch checkpoint: plain, or under one of the keys NESTED."""
    if not path.is_file():
        raise WrongWeights(f"{path}: there is no such file; check the path")
    if path.name in {Path(entry.url).name for entry in ENTRIES.values()}:
        verify(path)
    try:
        if path.suffix == ".safetensors":
            return load_safetensors(path.read_bytes())
        with torch.serialization.safe_globals(NUMPY_SCALARS):
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGE as error:
        raise WrongWeights(f"{path} is damaged or holds more than a state dict; fetch or save it again") from error
    for key in NESTED:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise WrongWeights(f"{path} holds no state dict; save one with torch.save(model.state_dict(), FILE)")
    return content


def load_network(network: nn.Module, state: dict[str, Tensor], origin: Path | str) -> None:
    """Load a state dict into a network; prefixes `module.` and the older name `linear` of the head are renamed.

    Raises WrongWeights, in one line, for missing or surplus keys, shapes that differ and another number of classes.
    """
    own = network.state_dict()
    renamed = {re.sub(r"^linear\.", "fc.", key.removeprefix("module.")): value for key, value in state.items()}
    for key, value in own.items():  # checkpoints older than 2018 have no batch counters
        if key.endswith("num_batches_tracked"):
            renamed.setdefault(key, value)
    missing, surplus = sorted(own.keys() - renamed.keys()), sorted(renamed.keys() - own.keys())
    if missing or surplus:
        examples = ", ".join([f"no {key}" for key in missing[:2]] + [f"unknown {key}" for key in surplus[:2]])
        raise WrongWeights(f"{origin} is for another network ({examples}); choose the model that it was made for")
    differing = [key for key in own if own[key].shape != renamed[key].shape]
    head = list(own)[-1]
    if head in differing and {key.rsplit(".", 1)[0] for key in differing} == {head.rsplit(".", 1)[0]}:
        raise WrongWeights(
            f"{origin} is for {len(renamed[head])} classes, the data set has {len(own[head])}; "
            "choose the data set that it was made for"
        )
    if differing:
        key = differing[0]
        raise WrongWeights(
            f"{origin}: {key} has shape {tuple(renamed[key].shape)}, the network wants {tuple(own[key].shape)}; "
            "choose the model that it was made for"
        )
    network.load_state_dict(renamed)


def saved_normalisation(state: dict[str, Tensor]) -> tuple[list[float], list[float]] | None:
    """Return the mean and standard deviation in a classifier's state dict, or None."""
    mean, std = (state.get(f"normalize.{key}") for key in ("mean", "std"))
    return None if mean is None or std is None else (mean.flatten().tolist(), std.flatten().tolist())


def network_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of the network from that of a classifier, or from its own."""
    return {key.removeprefix("network."): value for key, value in state.items() if not key.startswith("normalize.")}
