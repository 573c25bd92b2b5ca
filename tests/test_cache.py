"""The cache of tensors: found by facts, proved by digests, and made again where it is damaged."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from deeppatch.artifacts import state_digest, tensors_from_bytes, tensors_to_bytes
from deeppatch.cache import ContentCache, Entry, content_key

FACTS = {"model": "abc", "seed": 3, "amp": False}


def test_an_entry_comes_back_with_its_notes(tmp_path):
    cache = ContentCache(tmp_path / "new" / "folder")
    assert cache.read(FACTS) is None
    cache.write(FACTS, Entry({"a": torch.arange(6.0)}, {"percent": 12.5}))
    found = cache.read(dict(reversed(FACTS.items())))
    assert torch.equal(found.tensors["a"], torch.arange(6.0))
    assert found.notes == {"percent": 12.5}
    assert [path.name for path in cache.folder.iterdir()] == [f"{content_key(FACTS)}.safetensors"]


@pytest.mark.parametrize("change", [{"model": "other"}, {"seed": 4}, {"amp": True}, {"more": None}])
def test_other_facts_have_another_entry(tmp_path, change):
    cache = ContentCache(tmp_path)
    cache.write(FACTS, Entry({"a": torch.zeros(1)}))
    assert cache.read({**FACTS, **change}) is None


def of_other_facts(content: bytes) -> bytes:
    """A sound entry that somebody copied to another name."""
    tensors, meta = tensors_from_bytes(content, Path("x"))
    return tensors_to_bytes(tensors, {**meta, "facts": {**FACTS, "seed": 4}})


def shortened(content: bytes) -> bytes:
    """A sound file of part of the tensors."""
    tensors = {"a": tensors_from_bytes(content, Path("x"))[0]["a"][1:]}
    return tensors_to_bytes(tensors, {"digest": state_digest(tensors)})


DAMAGES = {
    "empty": lambda content: b"", "truncated": lambda content: content[:-10], "header": lambda content: content[:20],
    "a bit": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "garbage": lambda content: b"\xff" * len(content), "a row too few": shortened, "other facts": of_other_facts,
    "no digest": lambda content: tensors_to_bytes(tensors_from_bytes(content, Path("x"))[0]),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_entry_counts_as_absent_which_is_logged(tmp_path, damage, caplog):
    caplog.set_level(logging.INFO, "deeppatch")
    cache = ContentCache(tmp_path)
    cache.write(FACTS, Entry({"a": torch.arange(6.0)}))
    path = cache.path(FACTS)
    path.write_bytes(damage(path.read_bytes()))
    assert cache.read(FACTS) is None
    assert f"{path} is damaged; computing it again" in caplog.text
