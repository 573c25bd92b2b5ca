"""Find, download, verify and load weights of the zoo's networks."""

from __future__ import annotations

import hashlib
import http.client
import re
import sys
import urllib.error
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from deeppatch.errors import DownloadFailed, WrongWeights
from deeppatch.progress import info
from deeppatch.zoo.checkpoint_file import open_content
from deeppatch.zoo.checks import check_shapes, check_values, which_network
from deeppatch.zoo.entries import ENTRIES, Entry
from deeppatch.zoo.key_names import PREFIXES, Match, match
from deeppatch.zoo.state_dicts import choose_state
from deeppatch.zoo.stored_tensors import shown

Value = TypeVar("Value")
NORMALISE_ANEW = "give --mean and --std to pretrain"
_WRAPPERS = "(" + "|".join(map(re.escape, PREFIXES)) + ")*"


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


def read(path: Path, network: Callable[[], nn.Module] | None = None) -> dict[str, Tensor]:
    """Read the state dict in a .safetensors file or a torch checkpoint, under whatever key it lies.

    Nothing in the file is unpickled; what a training run has saved beside the weights is passed over. Several state
    dicts are named, and the choice is logged: one that fits the network that `network` returns, and no averaged copy.

    Raises WrongWeights, in one line with the reason and what to do, when the file holds none.
    """
    if path.is_file() and path.name in {Path(entry.url).name for entry in ENTRIES.values()}:
        verify(path)
    content = open_content(path)
    if network is None:
        return choose_state(content, path)
    own = network().state_dict()
    return choose_state(content, path, lambda state: match(network_state(state), own)[0].exact)


def load_network(network: nn.Module, state: dict[str, Tensor], origin: Path | str) -> None:
    """Load a state dict into a network, after all of it has been checked.

    Prefixes of wrappers (`module.`, `_orig_mod.`, `model.`, ...) and names of other versions of the same networks
    (`linear`, `shortcut`, and those of `published_names`) are renamed where the rest then fits exactly. Batch counters
    may be missing; single numbers beside the network's tensors, as `n_averaged`, and layers that a published network
    never reads are ignored.

    Raises:
        WrongWeights: In one line, for missing or surplus names, shapes that differ, another number of classes, and
            values that are not finite, no floating-point numbers, or negative variances.
    """
    own = network.state_dict()
    found = match(state, own)
    if not found[0].exact:
        missing, surplus = sorted(found[0].missing), sorted(found[0].surplus)
        examples = [f"no {key}" for key in missing[:2]] + [f"unknown {shown(key)}" for key in surplus[:2]]
        raise WrongWeights(f"{origin} is for another network ({', '.join(examples)}); {which_network(state)}")
    names = found[0].names
    tensors = {key: state[old] for key, old in names.items()}
    check_shapes(tensors, own, origin)
    check_values(tensors, own, names, origin)
    _log_what_lies_beside(found, origin)
    network.load_state_dict({**own, **tensors})  # checkpoints older than 2018 have no batch counters


def _log_what_lies_beside(found: list[Match], origin: Path | str) -> None:
    if len(found) > 1:
        kept, other = (shown(next(iter(each.names.values()))) for each in found[:2])
        info(f"{origin} holds {len(found)} networks beside each other; that of {kept} is loaded, not that of {other}")
    elif ignored := found[0].ignored:
        listed = ", ".join(map(shown, ignored[:4])) + (", ..." if len(ignored) > 4 else "")
        info(f"{origin}: ignored beside the network: {listed}")


def saved_normalisation(state: Mapping[str, Tensor], origin: Path | str) -> tuple[list[float], list[float]] | None:
    """Return the mean and standard deviation in a classifier's state dict, or None.

    Raises WrongWeights when they are not three finite numbers each, or a deviation is not above 0.
    """
    prefix = _classifier_prefix(state)
    if prefix is None:
        return None
    mean, std = (state[f"{prefix}normalize.{key}"] for key in ("mean", "std"))
    for name, value in (("mean", mean), ("std", std)):
        key = f"{origin}: {shown(prefix)}normalize.{name}"
        if not value.is_floating_point() or value.numel() not in (1, 3):
            raise WrongWeights(
                f"{key} holds {value.numel()} numbers of type {str(value.dtype).removeprefix('torch.')}, not one "
                f"floating-point number for each of 3 channels; {NORMALISE_ANEW}"
            )
        if not bool(value.isfinite().all()):
            raise WrongWeights(f"{key} holds NaN or infinite numbers; {NORMALISE_ANEW}")
    if bool((std <= 0).any()):
        raise WrongWeights(f"{origin}: {shown(prefix)}normalize.std is not above 0; {NORMALISE_ANEW}")
    return mean.flatten().tolist(), std.flatten().tolist()


def network_state(state: Mapping[str, Value]) -> dict[str, Value]:
    """Return the state dict of the network from that of a classifier, or from its own."""
    prefix = _classifier_prefix(state)
    if prefix is None:
        return dict(state)
    rest = {key: value for key, value in state.items() if not key.startswith(f"{prefix}normalize.")}
    return {key.removeprefix(f"{prefix}network."): value for key, value in rest.items()}


def _classifier_prefix(state: Mapping[str, object]) -> str | None:
    """Return what wrappers have put before the names of a `Classifier`; None for any other network's state dict."""
    for key in state:
        prefix = key.removesuffix("normalize.mean")
        if (
            key.endswith("normalize.mean")
            and re.fullmatch(_WRAPPERS, prefix)
            and f"{prefix}normalize.std" in state
            and any(each.startswith(f"{prefix}network.") for each in state)
        ):
            return prefix
    return None
