"""A digest of a network: of its weights, its modules with their settings, and the code of their forward passes."""

from __future__ import annotations

import contextlib
import hashlib
import inspect

from torch import fx, nn

from deeppatch.artifacts import state_digest

PLAIN = (str, int, float, bool, type(None))


def network_digest(network: nn.Module) -> str:
    """Return a SHA-256 of a network's weights, of the names and settings of its modules, and of their code.

    Two networks with the same weights differ by what is no tensor: the stride of a convolution, the kind of a router.
    Settings are a module's public attributes that are numbers, text, or tuples, lists and dicts of these.

    >>> first, again = (nn.Conv2d(1, 1, 1, bias=False) for _ in range(2))
    >>> _ = again.load_state_dict(first.state_dict())
    >>> network_digest(first) == network_digest(again)
    True
    >>> again.stride = (2, 2)
    >>> network_digest(first) == network_digest(again)
    False
    """
    digest = hashlib.sha256(state_digest(network.state_dict()).encode())
    for name, module in network.named_modules():
        settings = {key: _plain(value) for key, value in sorted(vars(module).items()) if not key.startswith("_")}
        settings.pop("training", None)
        digest.update(f"\n{name} {type(module).__module__}.{type(module).__qualname__} {settings!r}".encode())
        digest.update((module.code if isinstance(module, fx.GraphModule) else _source(module)).encode())
    return digest.hexdigest()


def _plain(value: object) -> object:
    """Return a value of plain types, with dicts as sorted pairs; of any other value its type."""
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, (tuple, list)):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return sorted((str(key), repr(_plain(each))) for key, each in value.items())
    return type(value).__qualname__


def _source(module: nn.Module) -> str:
    with contextlib.suppress(OSError, TypeError):
        return inspect.getsource(type(module).forward)
    return ""
