"""Find the state dicts in the content of a checkpoint, choose one, and say why there is none."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from deeppatch.errors import WrongWeights
from deeppatch.progress import info
from deeppatch.zoo.checkpoint_file import SAVE_AGAIN, UNREADABLE, Content
from deeppatch.zoo.inert_pickle import Call
from deeppatch.zoo.stored_tensors import StoredTensor, shown

# how deep a state dict may lie in a checkpoint
DEPTH = 8
# copies of a network, which are taken only where there is nothing else
_COPY = re.compile(r"ema|swa|averag|teacher|best|initial", re.IGNORECASE)

States = dict[str, dict[str, Tensor | StoredTensor]]


def choose_state(
    content: Content, path: Path, fits: Callable[[Mapping[str, Any]], bool] | None = None
) -> dict[str, Tensor]:
    """Return the state dict of a checkpoint, wherever it lies in it; several are named, and the choice is logged.

    Args:
        content: The content of the file.
        path: The file, for messages.
        fits: Whether a state dict's names are those of the network that is to be loaded; those are preferred.

    Raises:
        WrongWeights: When there is none, with the reason, or when a tensor in it cannot be read.
    """
    found = state_dicts(content.root)
    if not found:
        raise WrongWeights(f"{path} {reason_for_none(content)}")
    largest = max(map(len, found.values()))
    whole = [name for name, state in found.items() if 2 * len(state) >= largest]
    fitting = [name for name, state in found.items() if fits and fits(state)]
    chosen = min(fitting or whole, key=lambda name: bool(_COPY.search(name)))
    if len(several := list(dict.fromkeys([*whole, *fitting]))) > 1:
        names = ", ".join(shown(name) or "(top level)" for name in several)
        why = " (its names fit the network)" if 0 < len(fitting) < len(several) else ""
        info(f"{path} holds several state dicts ({names}); {shown(chosen) or '(top level)'} is loaded{why}")
    return {key: _values(value, key, path) for key, value in found[chosen].items()}


def state_dicts(root: Any) -> States:
    """Return the dicts of named tensors in a checkpoint by where they lie, such as `state_dict` or `models.net`.

    Numbers, strings and other company in them are left out, and states of optimizers.
    """
    found: States = {}
    for place, node in _nodes(root):
        tensors = {key: value for key, value in node.items() if isinstance(value, (StoredTensor, Tensor))}
        if any(value.ndim for value in tensors.values()) and all(isinstance(key, str) for key in tensors):
            found[place] = tensors
    return found


def reason_for_none(content: Content) -> str:
    """Say in words why a checkpoint has no state dict, and what to do."""
    root = content.root
    if module := next((_name(node) for node in _everything(root) if _is_module(node)), None):
        return f"holds a pickled module ({module}), which only its own code can load; load it there and {SAVE_AGAIN}"
    if isinstance(root, (StoredTensor, Tensor)):
        return f"holds one tensor without a name; {SAVE_AGAIN}"
    if isinstance(root, dict) and "param_groups" in root:
        return f"holds the state of an optimizer, no weights; {SAVE_AGAIN}"
    for _place, node in _nodes(root):
        if any(isinstance(key, int) and isinstance(value, StoredTensor) for key, value in node.items()):
            return f"holds tensors by numbers, not by the names of a network's parameters; {SAVE_AGAIN}"
        if arrays := [key for key, value in node.items() if _is_array(value)]:
            return f"holds numpy arrays ({shown(arrays[0])}), not tensors; {SAVE_AGAIN}"
    if isinstance(root, (list, tuple)) and any(isinstance(each, StoredTensor) for each in root):
        return f"holds a list of tensors without names; {SAVE_AGAIN}"
    if isinstance(root, Call):
        return f"holds an object ({_name(root)}), no state dict; load it with its own code and {SAVE_AGAIN}"
    return f"holds no state dict; {SAVE_AGAIN}"


def _values(value: Tensor | StoredTensor, key: str, path: Path) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if value.problem:
        what = "dense floating-point tensors" if "sparse" in value.problem else "plain floating-point tensors"
        raise WrongWeights(f"{path}: {shown(key)} {value.problem}; save the weights as {what}")
    try:
        return value.values()
    except UNREADABLE as error:
        raise WrongWeights(f"{path} is damaged: {shown(key)} is cut off; fetch or save it again") from error


def _parts(node: Any) -> dict[Any, Any] | None:
    """Return what a value contains by name: a dict's items, a list's elements by number, an object's attributes."""
    if isinstance(node, dict):
        return node
    if isinstance(node, (list, tuple)):
        return dict(enumerate(node))
    if isinstance(node, Call):
        attributes = node.state if isinstance(node.state, dict) else {}
        return None if _is_module(node) else {**attributes, **node.items}
    return None


def _is_module(node: Any) -> bool:
    """Tell whether a value is a pickled torch.nn.Module, by its attributes."""
    if isinstance(node, Call) and str(node.maker).startswith(("torch.fx.", "torch.nn.modules.")):
        return True
    attributes = node.state if isinstance(node, Call) else None
    return isinstance(attributes, dict) and {"_parameters", "_modules"} <= attributes.keys()


def _is_array(value: Any) -> bool:
    name = str(value.maker) if isinstance(value, Call) else ""
    return name.startswith("numpy.") and name.endswith(("._reconstruct", "._frombuffer"))


def _name(node: Call) -> str:
    """Return the name of the class or function of a call, also of one whose result was called."""
    maker = node.maker
    while isinstance(maker, Call):
        maker = maker.maker
    return shown(maker)


def _nodes(root: Any) -> Iterator[tuple[str, dict[Any, Any]]]:
    """Yield every dict in a checkpoint with its place, but those of optimizers."""
    seen: set[int] = set()
    waiting: list[tuple[str, Any, int]] = [("", root, 0)]
    while waiting:
        place, node, depth = waiting.pop(0)
        parts = _parts(node)
        if parts is None or id(node) in seen or depth > DEPTH or "param_groups" in parts:
            continue
        seen.add(id(node))
        if not isinstance(node, (list, tuple)):
            yield place, parts
        for key, value in parts.items():
            if isinstance(value, (dict, list, tuple, Call)):
                waiting.append((f"{place}.{key}" if place else str(key), value, depth + 1))


def _everything(root: Any) -> Iterator[Any]:
    """Yield every value in a checkpoint once."""
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        node = waiting.pop(0)
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        if isinstance(node, Call):
            waiting += [node.arguments, node.state, node.items, node.elements]
        elif isinstance(node, dict):
            waiting += node.values()
        elif isinstance(node, (list, tuple)):
            waiting += node
