"""Every reader refuses, in one line, what only looks right: hashes may fit, types and shapes do not."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from deeppatch import saving, storage, training
from deeppatch.artifacts import Checkpoint, state_digest, tensors_from_bytes, tensors_to_bytes
from deeppatch.cache import ContentCache, Entry, content_key
from deeppatch.cli.compose.inputs import composed
from deeppatch.data.biased_split import partition_from_bytes
from deeppatch.decomposition import index_sets
from deeppatch.errors import StaleArtifact, UserError
from deeppatch.hybrid.selection import selection_from_bytes
from deeppatch.localization import ratio_estimation
from deeppatch.localization.ablation import CorrectCounts
from deeppatch.localization.scoring_run import ScoringRun
from deeppatch.modular.genetic import PopulationSearch
from deeppatch.modular.heads import Heads
from deeppatch.modular.modules import Modules
from deeppatch.modular.presets import PRESETS
from deeppatch.patching.patch_file import Patch
from deeppatch.patching.router import Router
from deeppatch.retrain import interpolate
from deeppatch.retrain.bank import Bank
from deeppatch.stage import Stage
from deeppatch.zoo.checkpoint_file import open_content
from deeppatch.zoo.classifier import Classifier

ORIGIN = Path("output/given.file")
DEEP = "[" * 10_000 + "]" * 10_000
WHOLE, NUMBERS = torch.tensor([0, 1]), torch.ones(2)
SAFETENSORS: dict[str, tuple[Callable[[bytes, Path], Any], dict[str, Tensor], dict[str, Any]]] = {
    "patch": (
        Patch.from_bytes, {"channels/conv1": WHOLE, "units/conv1/rows": torch.ones(2, 3, 3, 3)},
        {"kind": "replace", "base": "ab", "about": {"classes": ["a", "b"], "image_size": [8, 8]}},
    ),
    "router": (
        Router.from_bytes, {"weight": NUMBERS, "bias": torch.tensor(0.5), "threshold": torch.tensor(0.0)},
        {"router": "probe"},
    ),
    "modules": (Modules.from_bytes, {"kept/conv1": torch.ones(2, 4, dtype=torch.bool)}, {"base": "ab"}),
    "modules with heads": (
        Modules.from_bytes,
        {"kept/conv1": torch.ones(2, 4, dtype=torch.bool),
         **{f"heads/{name}": value for name, value in Heads(2, 2).state_dict().items()}},
        {"base": "ab"},
    ),
    "modules with scales": (
        Modules.from_bytes,
        {"kept/conv1": torch.ones(2, 4, dtype=torch.bool), "heads/scale": torch.ones(2), "heads/bias": torch.ones(2)},
        {"base": "ab"},
    ),
    "selection": (
        selection_from_bytes,
        {"bought": WHOLE, "labels": WHOLE, "members": WHOLE, "lender": WHOLE, "unlabelled": WHOLE, "weights": NUMBERS},
        {"method": "random"},
    ),
    "bank": (
        Bank.from_bytes,
        {"scale": torch.ones(2, 5), "shift": torch.ones(2, 5), "selector/weight": torch.ones(2, 16),
         "selector/bias": NUMBERS, "selector/threshold": torch.tensor(0.5)},
        {"bank": ["clean", "blur"], "base": "ab", "norms": ["0"]},
    ),
    "split": (partition_from_bytes, {name: WHOLE for name in ("train", "val", "test", "pool")}, {"order": "ab"}),
}  # fmt: skip


def _apart(
    read: Any, tensors: dict[str, Tensor], meta: dict[str, Any]
) -> tuple[Any, dict[str, Tensor], dict[str, Any]]:
    """Give each tensor memory of its own, as a file has it."""
    return read, {name: each.clone() for name, each in tensors.items()}, meta


def with_metadata(tensors: dict[str, Tensor], text: str) -> bytes:
    """Return a safetensors file whose metadata is any text."""
    return safetensors.torch.save(tensors, {"deeppatch": text})


def refused(read: Callable[[], object], kind: type[UserError] = StaleArtifact) -> None:
    """Check that reading raises a UserError of one line."""
    with pytest.raises(kind) as error:
        read()
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("name", SAFETENSORS)
def test_what_is_right_is_read(name):
    read, tensors, meta = _apart(*SAFETENSORS[name])
    read(tensors_to_bytes(tensors, meta), ORIGIN)


@pytest.mark.parametrize("text", ["[]", "null", "3", "NaN", "{", '{"a": NaN}', '{"a": 1e999}', DEEP])
@pytest.mark.parametrize("name", SAFETENSORS)
def test_metadata_that_is_no_object(name, text):
    read, tensors, _meta = _apart(*SAFETENSORS[name])
    refused(lambda: read(with_metadata(tensors, text), ORIGIN))


@pytest.mark.parametrize("name", SAFETENSORS)
def test_a_file_without_tensors_and_one_without_metadata(name):
    read, tensors, meta = _apart(*SAFETENSORS[name])
    refused(lambda: read(tensors_to_bytes({}, meta), ORIGIN))
    if name != "selection":
        refused(lambda: read(tensors_to_bytes(tensors, {}), ORIGIN))


@pytest.mark.parametrize("wrong", [None, 3, [], [1], {"a": 1}])
@pytest.mark.parametrize(
    ("name", "key"), [(name, key) for name in SAFETENSORS for key in SAFETENSORS[name][2] if key != "method"]
)
def test_metadata_of_other_types(name, key, wrong):
    read, tensors, meta = _apart(*SAFETENSORS[name])
    if key == "about" and wrong == {"a": 1}:
        return  # what else is told there is not read
    refused(lambda: read(tensors_to_bytes(tensors, {**meta, key: wrong}), ORIGIN))


@pytest.mark.parametrize(
    "about",
    [
        3,
        [],
        None,
        {"classes": [1]},
        {"classes": "ab"},
        {"image_size": [8]},
        {"image_size": [0, 8]},
        {"image_size": "8"},
    ],
)
def test_classes_and_sizes_of_other_types(about):
    read, tensors, meta = _apart(*SAFETENSORS["patch"])
    refused(lambda: read(tensors_to_bytes(tensors, {**meta, "about": about}), ORIGIN))
    refused(lambda: tensors_from_bytes(with_metadata(tensors, json.dumps(about)), ORIGIN))


ABSENT = object()
FROM = {"model": "1 simcnn", "network": "simcnn_x0_125", "outputs": 3, "label": 2}


@pytest.mark.parametrize(
    "change",
    [{"assembled": 3}, {"assembled": []}, {"assembled": [3, 3]}, {"assembled": [FROM]}, {"classes": 2}, {"classes": []},
     *({"image_size": each} for each in (None, [8], ABSENT)),
     *({"assembled": [{**FROM, **each}] * 2} for each in (
         {"network": 3}, {"label": 3}, {"label": "0"}, {"outputs": True}, {"more": 1}))],
)  # fmt: skip
def test_an_assembled_classifier_that_does_not_say_what_it_is_made_of(tmp_path, change):
    meta = {"assembled": [FROM] * 2, "classes": ["a", "b"], "image_size": [32, 32], **change}
    text = json.dumps({name: value for name, value in meta.items() if value is not ABSENT})
    path = tmp_path / "assembled.safetensors"
    path.write_bytes(with_metadata({"kept/0/conv1": torch.ones(2, dtype=torch.bool)}, text))
    refused(lambda: saving.load(path))


@pytest.mark.parametrize("change", [{"router/weight": WHOLE}, {"router/bias": torch.ones(3)}, {"channels/0": NUMBERS}])
def test_a_switched_model_of_other_tensors(tmp_path, change):
    model = Classifier(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)), classes=["a", "b"])
    path = tmp_path / "switched.safetensors"
    tensors = {"router/weight": NUMBERS, "router/bias": torch.tensor(0.5), "router/threshold": torch.tensor(0.0),
               "channels/0": WHOLE, "units/0/rows": torch.ones(2, 3, 3, 3)}  # fmt: skip
    apart = {name: each.clone() for name, each in {**tensors, **change}.items()}
    path.write_bytes(tensors_to_bytes(apart, {"router": "probe", "kind": "replace", "base": "ab"}))
    refused(lambda: saving.load(path, model), UserError)


@pytest.mark.parametrize(("name", "key"), [(name, key) for name in SAFETENSORS for key in SAFETENSORS[name][1]])
def test_tensors_of_other_shapes_and_types(name, key):
    read, tensors, meta = _apart(*SAFETENSORS[name])
    given = tensors[key]
    changed = [given.reshape(-1)[:1].reshape(1, 1, 1, 1, 1)]
    if not key.startswith(("units/", "scale", "shift", "selector/threshold", "kept/")) and given.ndim:
        changed.append(given.to(torch.complex64))
    for value in changed:
        if key in ("units/conv1/rows", "threshold", "bias", "selector/threshold"):
            continue  # compared with the network's own when it is applied; one number is one number
        refused(lambda value=value: read(tensors_to_bytes({**tensors, key: value}, meta), ORIGIN))
    refused(lambda: read(tensors_to_bytes({k: v for k, v in tensors.items() if k != key} or {}, meta), ORIGIN)
            ) if key != "units/conv1/rows" else None  # fmt: skip


@pytest.mark.parametrize("wrong", [torch.float32, torch.complex64, torch.int64])
def test_numbers_of_a_patch_that_are_none(wrong):
    read, tensors, meta = _apart(*SAFETENSORS["patch"])
    rows = tensors["units/conv1/rows"] * (float("nan") if wrong == torch.float32 else 1)
    refused(lambda: read(tensors_to_bytes({**tensors, "units/conv1/rows": rows.to(wrong)}, meta), ORIGIN))


def test_lists_of_a_selection_that_do_not_fit_each_other():
    read, tensors, meta = _apart(*SAFETENSORS["selection"])
    for change in ({"lender": torch.tensor([0, 2])}, {"lender": torch.tensor([-1, 0])}, {"labels": torch.tensor([1])}):
        refused(lambda change=change: read(tensors_to_bytes({**tensors, **change}, meta), ORIGIN))


RANKING = {"method": "perfloss", "layers": {"conv1": {"order": [1, 0], "scores": [0.5, 0.25]}}}
TEXTS = [DEEP, "null", "3", "[]", '"layers"', "{", json.dumps(RANKING).replace("0.5", "NaN"),
         json.dumps({**RANKING, "layers": []}), json.dumps({**RANKING, "layers": {"conv1": 3}}),
         json.dumps({**RANKING, "method": 3}), json.dumps(RANKING).replace("[1, 0]", '["1", 0]'),
         '{"0": [1, "x"]}', '{"0": [1], "1": [1, 2]}', '{"1": [1]}']  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_json_that_is_neither_a_ranking_nor_indices(tmp_path, text):
    path = tmp_path / "given.json"
    path.write_text(json.dumps(RANKING))
    saving.load(path)
    path.write_text(text)
    refused(lambda: saving.load(path))
    refused(lambda: index_sets.parse(text.encode(), path, 2, 9), UserError)


def test_a_header_of_weights_that_is_nested_too_deeply(tmp_path):
    header = ('{"a": ' + DEEP + "}").encode()
    path = tmp_path / "given.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    refused(lambda: open_content(path), UserError)


RECORD = {
    "inputs": {"base": "ab"}, "outputs": {"file": "cd"}, "settings": {"lr": 0.1}, "stage": "pretrain", "command": "x",
    "consumed": {"base": {"file": "y"}}, "wall_seconds": 3.5,
    "data": {"classes": ["a"], "image_size": [3, 8, 8], "parts": {"test": {"images": 3, "digest": "ab"}}},
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [{"inputs": []}, {"outputs": {"file": 3}}, {"settings": [1]}, {"stage": 3}, {"command": None},
     {"consumed": {"a": 1}}, {"wall_seconds": "1"}, {"wall_seconds": True}, {"data": []}, {"data": {"classes": [1]}},
     {"data": {**RECORD["data"], "parts": {"test": 3}}}, {"settings": {"lr": float("nan")}}],
)  # fmt: skip
def test_a_record_of_other_types_is_none(tmp_path, change):
    (tmp_path / "run.json").write_text(json.dumps(RECORD))
    assert storage.read_record(tmp_path) == RECORD
    (tmp_path / "run.json").write_text(json.dumps({**RECORD, **change}))
    assert storage.read_record(tmp_path) is None


@pytest.mark.parametrize("text", ["[]", "null", DEEP, '{"weights": 3}', '{"weights": NaN}', "{}", "x"])
def test_a_stage_s_json_of_another_form_is_named_with_the_command(tmp_path, text):
    earlier = Stage(tmp_path, tmp_path / "pretrain", {"settings": {}})
    path = earlier.write("metrics.json", text.encode())
    earlier.finish()
    with pytest.raises(StaleArtifact, match="does not hold what its stage writes; make it again with: go"):
        Stage(tmp_path, tmp_path / "later", {"settings": {}}).read_json(path, "go", weights=str)


def forged(path: Path, content: object) -> None:
    """Write a checkpoint with the right hash."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    path.write_bytes(hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue())


@pytest.mark.parametrize(
    "content",
    [3, [], {}, {"settings": "{}", "state": 3}, {"settings": "[]", "state": {}}, {"settings": 3, "state": {}},
     {"settings": DEEP, "state": {}}, {"settings": "{}", "state": {"history": 3}},
     {"settings": "{}", "state": {"history": {"loss": []}, "model": {"x": torch.ones(2)}}}],
)  # fmt: skip
def test_a_checkpoint_of_another_form_is_one_line(tmp_path, content):
    checkpoint = Checkpoint(tmp_path / "checkpoint.pt", {}, resume=True)
    forged(checkpoint.path, content)
    model = nn.Linear(2, 2)
    optimizer, schedule = training.adam(model.parameters(), lr=0.1)
    with pytest.raises(StaleArtifact, match=r"checkpoint.pt is damaged; delete it and run without -r"):
        training.fit(
            model, [], lambda _model: 1.0, loss=training.cross_entropy, optimizer=optimizer, schedule=schedule,
            checkpoint=checkpoint,
        )  # fmt: skip


SEARCH = {"record": {}, "weight": 0.5, "winners": [0], "population": [], "best": [], "candidates": {}}
COUNTS = {"batches": 1, "images": 3, "unedited": 2, "correct": {"conv1": [1]}, "current": {}}
CURVE = {"mean": 0.5, "standard_error": 0.1, "levels": [0.5]}
POINT = {"part": "val", "share": 0.0, "lost": 0, "bound": 1.0, "accuracy": {"clean": 50.0}}
JOINED = {"base": "ab", "range_images": 3, "test_images": 3, "ranges": {}, "metrics": {"before": {"f1": 0.5}}}


def search(checkpoint: Checkpoint) -> object:
    """Go on with a genetic search."""
    none = PopulationSearch([], lambda *_: NUMBERS, lambda _: 0.0, WHOLE, NUMBERS, PRESETS["auto"], [], {}, 0)
    return none.run(0, checkpoint=checkpoint)


def counts(checkpoint: Checkpoint) -> object:
    """Go on with counting what each filter's edit leaves correct."""
    run = ScoringRun(nn.Linear(2, 2), None, None, checkpoint=checkpoint)
    kinds = {"batches": int, "images": int, "unedited": int, "correct": {str: [int]}, "current": {str: [int]}}
    return run.restore(CorrectCounts().load, **kinds)


STATES = {
    "search": (search, SEARCH, [{"record": 3}, {"population": [1]}, {"winners": "0"}, {"record": {"no such": [0.5]}},
                                {"candidates": {"keys": []}}, {"best": None}]),
    "counts": (counts, COUNTS, [{"batches": "1"}, {"correct": {"conv1": [0.5]}}, {"current": []}, {"images": None}]),
    "ratios": (ratio_estimation._measured, {"0.25": CURVE}, [{"0.25": 3}, {"0.25": {}},
               {"0.25": {**CURVE, "mean": "x"}}]),
    "points": (interpolate._measured, {"points": [POINT] * 2}, [{"points": 3}, {"points": [POINT]}, {"points": [3, 3]},
               {"points": [{"part": "val"}] * 2}, {"points": [{**POINT, "accuracy": {"clean": "x"}}] * 2}]),
    "joins": (composed, {"3": JOINED}, [{"3": 3}, {"3": {}}, {"3": {**JOINED, "metrics": []}},
              {"3": {**JOINED, "base": 1}}]),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "number"), [(kind, each) for kind in STATES for each in range(len(STATES[kind][2]))])
def test_a_state_of_other_kinds_is_one_line(tmp_path, kind, number):
    go_on, whole, changes = STATES[kind]
    checkpoint = Checkpoint(tmp_path / "checkpoint.pt", {}, resume=True)
    checkpoint.save({**whole, **changes[number]})
    with pytest.raises(StaleArtifact, match=r"checkpoint.pt is damaged; delete it and run without -r"):
        go_on(checkpoint)


@pytest.mark.parametrize("kind", [kind for kind in STATES if kind != "search"])
def test_a_state_of_the_right_kinds_is_taken(tmp_path, kind):
    go_on, whole, _changes = STATES[kind]
    checkpoint = Checkpoint(tmp_path / "checkpoint.pt", {}, resume=True)
    checkpoint.save(whole)
    go_on(checkpoint)


def test_an_entry_of_the_cache_of_another_form_is_absent(tmp_path):
    """compare's cells are such entries."""
    cache, facts = ContentCache(tmp_path), {"seed": 1}
    cache.write(facts, Entry({"a": WHOLE}))
    for meta in ({"facts": facts, "digest": state_digest({"a": WHOLE})}, {"notes": []}, []):
        path = tmp_path / f"{content_key(facts)}.safetensors"
        path.write_bytes(tensors_to_bytes({"a": WHOLE}, meta))
        assert cache.read(facts) is None
