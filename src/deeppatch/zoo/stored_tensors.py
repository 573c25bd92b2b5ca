"""Tensors of torch checkpoints: what stands for a tensor until it is read, and for the calls that make one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from deeppatch.zoo.inert_pickle import BadPickle, Global


@dataclass(eq=False)
class StoredTensor:
    """A tensor in a file, which is read by `values`; `problem` says why that cannot be done, if it cannot."""

    size: tuple[int, ...] = ()
    problem: str = ""
    values: Callable[[], Tensor] = partial(torch.empty, 0)

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.size)


@dataclass(eq=False)
class Storage:
    """The numbers of one or more tensors in a file; `read` takes the first byte and the number of bytes."""

    dtype: torch.dtype | None
    read: Callable[[int, int], bytes]


def shown(name: object, length: int = 80) -> str:
    """Return a name from a file as it may stand in a message: printable, on one line, not too long."""
    text = "".join(each if each.isprintable() else "?" for each in str(name))
    return text if len(text) <= length else f"{text[:length]}..."


def dtype_of(kind: Any) -> torch.dtype | None:
    """Return the type of the numbers of a storage class; None for those of quantised numbers."""
    name = kind.name if isinstance(kind, Global) else ""
    return _STORAGES.get(name)


def item_size(dtype: torch.dtype | None) -> int:
    """Return the number of bytes of one number."""
    return dtype.itemsize if dtype else 1


def _plain(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_more: Any) -> StoredTensor:
    if not isinstance(storage, Storage):
        raise BadPickle("a tensor without storage")
    if storage.dtype is None:
        return StoredTensor(tuple(size), "is quantised")
    return StoredTensor(tuple(size), "", partial(_view, storage, storage.dtype, offset, size, stride))


def _of_type(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *more: Any) -> StoredTensor:
    """Stand for a tensor whose type is not that of its storage, such as one of eight-bit floats."""
    _requires_grad, _hooks, dtype, *_metadata = more
    kind = getattr(torch, dtype.name, None) if isinstance(dtype, Global) else None
    if not isinstance(kind, torch.dtype) or not isinstance(storage, Storage):
        return StoredTensor(tuple(size), f"has numbers of the unknown type {shown(dtype)}")
    return StoredTensor(tuple(size), "", partial(_view, storage, kind, offset, size, stride))


def _view(storage: Storage, dtype: torch.dtype, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    if math.prod(size) == 0:
        return torch.empty(size, dtype=dtype)
    count = 1 + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if min(offset, *size, *stride, 0) < 0:
        raise BadPickle("a tensor with a negative size")
    content = bytearray(storage.read(offset * dtype.itemsize, count * dtype.itemsize))
    if len(content) < count * dtype.itemsize:
        raise BadPickle("a tensor is cut off")
    return torch.frombuffer(content, dtype=dtype, count=count).as_strided(size, stride)


def _unreadable(problem: str) -> Callable[..., StoredTensor]:
    return lambda *_arguments: StoredTensor((0,), problem)


def _of_subclass(function: Any, _kind: Any, arguments: Any, *_state: Any) -> Any:
    """Stand for a tensor of a subclass, or one with attributes, which are left out."""
    builder = BUILDERS.get(str(function))
    return builder(*arguments) if builder else StoredTensor((0,), "is of a tensor subclass")


def _first(value: Any, *_more: Any) -> Any:
    return value


def _empty_dict(*_arguments: Any) -> dict[Any, Any]:
    return {}


_STORAGES: dict[str, torch.dtype] = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128, "UntypedStorage": torch.uint8,
}  # fmt: skip
BUILDERS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": lambda pairs=(), *_more: {key: value for key, value in pairs},
    "collections.defaultdict": _empty_dict,
    "collections.Counter": lambda counts=None, *_more: dict(counts or {}),
    "torch._utils._rebuild_tensor": _plain,
    "torch._utils._rebuild_tensor_v2": _plain,
    "torch._utils._rebuild_tensor_v3": _of_type,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _first,
    "torch._tensor._rebuild_from_type_v2": _of_subclass,
    "torch._utils._rebuild_sparse_tensor": _unreadable("is sparse"),
    "torch._utils._rebuild_sparse_csr_tensor": _unreadable("is sparse"),
    "torch._utils._rebuild_qtensor": _unreadable("is quantised"),
    "torch._utils._rebuild_nested_tensor": _unreadable("is nested"),
    "torch._utils._rebuild_meta_tensor_no_storage": _unreadable("has no values (it lay on the meta device)"),
    "torch._utils._rebuild_wrapper_subclass": _unreadable("is of a tensor subclass"),
}
