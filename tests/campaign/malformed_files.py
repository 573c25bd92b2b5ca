"""Malformed files for stages that read what others left, or what their users have: weights, JSON, tables, records."""

from __future__ import annotations

import hashlib
import io
import json
import random
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from forked import Running
from malformed import BASE, Case, Place, damaged, images_of, junk, picture, word
from workshop import PATCH, RESNET, SELECTION, SIMCNN

from deeppatch.artifacts import tensors_from_bytes, tensors_to_bytes

NETWORK = "digits/resnet8"
FROM_RESNET, FROM_SIMCNN = RESNET.split(), SIMCNN.split()
DEEP = "[" * 5000 + "]" * 5000
VALUES: list[Any] = [None, 3, "x", [], [1], {"a": 1}, True, [[]], {}, -1]
EVALUATE = ["switch", *FROM_RESNET, *PATCH.split()]
# who reads an artifact, where it lies, and tensors whose loss or shape must be told
READERS = {
    "weights": (["influence", *FROM_RESNET], BASE),
    "patch": (EVALUATE, f"{NETWORK}/correct-patch-*/patch.safetensors"),
    "modules": (
        ["compose", *FROM_SIMCNN, "--method", "ga"],
        "digits_5/simcnn_svhn_weak/modularize-ga-*/modules.safetensors",
    ),
    "selection": (
        [
            "relearn",
            *FROM_RESNET,
            *SELECTION.split(),
            "--encoder_epochs",
            "4",
            "-e",
            "4",
            "--steps",
            "2",
            "--lr",
            "0.003",
        ],
        f"{NETWORK}/annotate-*/selection.safetensors",
    ),
    "router": (["export", *FROM_RESNET, *PATCH.split()], f"{NETWORK}/switch-*/router.safetensors"),
}


def one(folder: Path, pattern: str) -> Path:
    """Return the only file of a pattern."""
    (found,) = folder.glob(pattern)
    return found


def rehash(path: Path) -> None:
    """Let the record beside a file have its hash, so that only its content is wrong."""
    record = json.loads((path.parent / "run.json").read_bytes())
    record["outputs"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    (path.parent / "run.json").write_text(json.dumps(record))


def header_of(draw: random.Random, content: bytes) -> tuple[bytes, str]:
    """Return a safetensors file with another header, and what is wrong with it."""
    length = int.from_bytes(content[:8], "little")
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    name = draw.choice([each for each in header if each != "__metadata__"])
    how = draw.choice(["length", "offsets", "dtype", "shape", "text", "deep", "list", "null", "missing", "negative"])
    if how == "length":
        return draw.choice([2**63, len(content) * 9, 2**40]).to_bytes(8, "little") + content[8:], how
    if how in ("text", "deep", "list", "null"):
        text = {"text": "{" * draw.randint(1, 9), "deep": DEEP, "list": "[]", "null": "null"}[how].encode()
        return len(text).to_bytes(8, "little") + text + body, how
    start, end = header[name]["data_offsets"]
    change: dict[str, Any] = {
        "offsets": {"data_offsets": [start, end + draw.randint(1, 9)]}, "dtype": {"dtype": draw.choice(["F99", "", 3])},
        "shape": {"shape": [draw.randint(2, 9)] * 6}, "negative": {"shape": [-1]},
    }.get(how, {})  # fmt: skip
    header[name].update(change)
    if how == "missing":
        del header[name]["data_offsets"]
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body, how


def weights(draw: random.Random, place: Place) -> Case:
    """Base weights of the user's own, as safetensors or as a torch checkpoint."""
    content = one(place.left, BASE).read_bytes()
    state = safetensors.torch.load(content)
    how = draw.choice(
        ["header", "header", "damaged", "nan", "shape", "missing", "integers", "list", "code", "torch cut", "empty"]
    )
    name, ending = draw.choice([each for each in state if each.endswith("weight")]), "safetensors"
    if how == "header":
        content, how = header_of(draw, content)
    elif how == "damaged":
        content, how = damaged(draw, content)
    elif how in ("list", "code", "torch cut"):
        ending, buffer = "pt", io.BytesIO()
        torch.save({"list": [1, 2, 3], "code": torch.nn.Linear(2, 2)}.get(how, state), buffer)
        content = buffer.getvalue()
        content = content[: draw.randint(1, len(content) * 3 // 4)] if how == "torch cut" else content
    else:
        changed = {"nan": state[name] * float("nan"), "shape": state[name].reshape(-1)[:-1].clone()}
        changed["integers"] = torch.zeros(state[name].shape, dtype=torch.complex64)
        state = {} if how == "empty" else {**state, name: changed.get(how, state[name])}
        if how == "missing":
            del state[name]
        content = safetensors.torch.save(state)
    path = place.file(f"given.{ending}", content)
    return Case(["eval", *FROM_RESNET, "--base", str(path)], f"weights: {how}")


def artifact(draw: random.Random, place: Place) -> Case:
    """What an earlier stage left, with the hash that the record has, but not of the form that is written."""
    kind = draw.choice([*READERS])
    line, pattern = READERS[kind]
    path = one(place.copy(), pattern)
    tensors, meta = tensors_from_bytes(path.read_bytes(), path)
    how = draw.choice(["header", "damaged", "meta", "missing", "rank", "kind", "none"])
    name = draw.choice([each for each in tensors if tensors[each].ndim])
    content = path.read_bytes()
    if how == "header":
        content, how = header_of(draw, content)
    elif how == "damaged":
        content, how = damaged(draw, content)
    elif how == "meta":
        text = draw.choice(["[]", "null", "3", "{", "NaN", '{"a": NaN}', DEEP])
        content = safetensors.torch.save(tensors, {"deeppatch": text})
    else:
        changed = {
            "rank": tensors[name][None, None, None, None, None].clone(),
            "kind": tensors[name].to(torch.complex64),
        }
        tensors = {} if how == "none" else {**tensors, name: changed.get(how, tensors[name])}
        if how == "missing":
            del tensors[name]
        content = tensors_to_bytes(tensors, meta)
    path.write_bytes(content)
    rehash(path)
    return Case([*line], f"{kind}: {how} {name if how in ('missing', 'rank', 'kind') else ''}")


def record(draw: random.Random, place: Place) -> Case:
    """A record of an earlier stage that is none."""
    kind = draw.choice([*READERS])
    line, pattern = READERS[kind]
    path = one(place.copy(), pattern).with_name("run.json")
    content = json.loads(path.read_bytes())
    how = draw.choice(["damaged", "deep", "value", "value", "list", "no outputs"])
    if how == "damaged":
        made, how = damaged(draw, path.read_bytes())
        path.write_bytes(made)
    elif how == "value":
        key = draw.choice(["inputs", "outputs", "settings", "consumed", "stage", "command", "data"])
        wrong = [each for each in VALUES if type(each) is not type(content[key]) and each is not None]
        content[key] = draw.choice(wrong)
        path.write_text(json.dumps(content))
        how = f"{key} is {content[key]!r}"
    elif how == "no outputs":
        content["outputs"] = {}
        path.write_text(json.dumps(content))
    else:
        path.write_text(DEEP if how == "deep" else "[]")
    return Case([*line], f"record of {kind}: {how}")


def ranking(draw: random.Random, place: Place) -> Case:
    """A ranking of the user's own, or one that an earlier stage left."""
    source = one(place.left, f"{NETWORK}/assess-perfloss-*/ranking.json").read_bytes()
    content = json.loads(source)
    layer = draw.choice([*content["layers"]])
    row = content["layers"][layer]
    changes = {
        "value": lambda: content.update({draw.choice(["layers", "method", "base"]): draw.choice([3, [1], True, -1])}),
        "row": lambda: content["layers"].update({layer: draw.choice(VALUES)}),
        "twice": lambda: row["order"].insert(0, row["order"][1]),
        "beyond": lambda: row["order"].__setitem__(0, draw.choice([10**6, -1, 2.5, "0", None, 10**40])),
        "layer": lambda: content["layers"].update({word(draw): row}),
        "nothing": lambda: content.update(layers={}),
        "scores": lambda: row.update(scores=draw.choice([3, "x", ["a"], [None]])),
    }
    how = draw.choice([*changes, "damaged", "deep", "nan", "bytes"])
    if how in changes:
        changes[how]()
    made = json.dumps(content).encode()
    if how == "damaged":
        made, how = damaged(draw, source)
    made = {"deep": DEEP.encode(), "nan": made.replace(b"0.", b"NaN, 0.", 1), "bytes": b"\xff\xfe" + made}.get(
        how, made
    )
    path = place.file("given.json", made)
    place.copy()
    return Case(
        ["correct", *FROM_RESNET, *PATCH.split(), "--crt_epoch", "1", "--ranking", str(path)], f"ranking: {how}"
    )


def indices(draw: random.Random, place: Place) -> Case:
    """Indices of features of the user's own."""
    content: Any = json.loads(one(place.left, f"{NETWORK}/influence-*/indices.json").read_bytes())
    key = draw.choice([*content])
    how = draw.choice(["value", "beyond", "twice", "short", "no class", "one more", "damaged", "deep", "list"])
    if how == "value":
        content[key] = draw.choice([each for each in VALUES if not isinstance(each, list) or not each])
    elif how == "beyond":
        content[key][0] = draw.choice([10**6, -1, 1.5, "a", None, 10**30])
    elif how == "twice":
        content[key][0] = content[key][1]
    elif how == "short":
        content[key] = content[key][1:]
    elif how == "no class":
        del content[key]
    elif how == "one more":
        content[word(draw)] = content[key]
    made = json.dumps([content] if how == "list" else content).encode()
    if how == "damaged":
        made, how = damaged(draw, made)
    path = place.file("given.json", DEEP.encode() if how == "deep" else made)
    place.copy()
    return Case(["decompose", "validate", *FROM_RESNET, "-i", str(path)], f"indices: {how}")


def labels(draw: random.Random, place: Place) -> Case:
    """A table of labels for images of the user's own that is not filled as it must be."""
    root = images_of(draw, place, each=10)
    for number in range(8):
        place.file(f"photos/pool/{number}.png", picture(draw))
    shared = ["-m", "resnet8", "-d", f"folder:{root}", "-b", "4", "--device", "cpu", "--output_dir", str(place.output)]
    chosen = ["--method", "random", "--budget", "4"]
    for line in (["eval", *shared, "-e", "1"], ["annotate", *shared, *chosen]):
        ended = Running(line[0], line[1:]).wait()
        assert ended.status == 0, ended
    found = one(place.output, "*/resnet8/annotate-*/selection.csv").read_text("utf-8-sig")
    head, *rows = found.splitlines()
    filled = [f"{line.rstrip(',')},class0" for line in rows]
    unknown = {"file": f"{word(draw)}.png", "label": "class0"}
    made = {
        "half": [head, *filled[:2], *rows[2:]], "no such class": [head, *[f"{line}{word(draw)}" for line in rows]],
        "no head": filled, "twice": [head, *filled, filled[0].rpartition(",")[0] + ",class1"], "nothing": [head],
        "unknown image": [head, *filled, ",".join(unknown.get(name, "") for name in head.split(","))],
        "one column": [head.split(",")[0], "1", "2"],
        "missing": [head, *filled[1:]], "empty": rows,
    }  # fmt: skip
    how = draw.choice([*made, "damaged"])
    content = "\n".join(made.get(how, [head])).encode()
    if how == "damaged":
        content, how = damaged(draw, found.encode())
    path = place.file("given.csv", content)
    return Case(["relearn", *shared, *chosen, "-e", "1", "--steps", "2", "--labels", str(path)], f"labels: {how}")


def checkpoint(draw: random.Random, place: Place) -> Case:
    """The state of an interrupted run that is damaged, or none."""
    left = {
        "correct-finetune": (
            ["correct", *FROM_RESNET, "-c", "finetune", "--crt_epoch", "8", "--lr", "0.01"],
            "checkpoint.pt",
        ),
        "assess-perfloss": (["select", *FROM_RESNET, "-f", "perfloss"], "checkpoint.pt"),
        "modularize-ga": (
            [
                "modularize",
                *FROM_SIMCNN,
                *["--method", "ga", "--budget", "4", "--sensitivity_images", "10", "--search_images", "20"],
            ],
            draw.choice(["checkpoint.pt", "analysis.pt"]),
        ),
    }
    stage = draw.choice([*left])
    line, name = left[stage]
    (folder,) = place.copy().glob(f"*/*/{stage}-*")
    hidden = folder.with_name(f".{folder.name}.unfinished")
    folder.rename(hidden)
    (hidden / "run.json").unlink()
    buffer = io.BytesIO()
    settings = draw.choice(["{}", "[]", "null", DEEP, 3, json.dumps({"lr": 99})])
    saved = {"settings": settings, "state": draw.choice([None, 3, [], {}, {"history": 3}])}
    torch.save(draw.choice([saved, [], 3, {"state": {}}]), buffer)
    content = buffer.getvalue()
    how = draw.choice(["junk", "cut", "another", "another with its digest"])
    if how == "junk":
        content = junk(draw, draw.randint(0, 999))
    elif how == "cut":
        content = content[: draw.randint(0, len(content) - 1)]
    elif how == "another with its digest":
        content = hashlib.sha256(content).digest() + content
    (hidden / name).write_bytes(content)
    return Case([*line, "-r"], f"checkpoint of {stage}: {how}")


def output_folder(draw: random.Random, place: Place) -> Case:
    """An output folder that cannot be one."""
    file = place.file("file", b"x")
    loop = place.folder / "loop"
    loop.symlink_to(loop.name)
    where = draw.choice([file, file / "below", loop, loop / "below", Path("/proc/nowhere"), Path("/dev/null/x"),
                         place.folder / ("n" * 300), Path("/" + "/".join(["d" * 200] * 30))])  # fmt: skip
    return Case(
        ["eval", *FROM_RESNET, "--train", "-e", "1", "--output_dir", str(where)], f"--output_dir {str(where)[-30:]}"
    )


def given_file(draw: random.Random, place: Place) -> Case:
    """A file of the wrong kind where an option names another."""
    content, how = damaged(draw, junk(draw, 500))
    path = place.file(f"given{draw.choice(['', '.json', '.safetensors', '.csv', '.pt'])}", content)
    place.copy()
    line = draw.choice([
        ["eval", *FROM_RESNET, "--train", "--bias", "B", "--splits"],
        ["correct", *FROM_RESNET, "-c", "interpolate", "--finetuned"],
        [*EVALUATE, "--patch"], [*EVALUATE, "--router_file"], [*EVALUATE, "--experts"],
        ["compare", *FROM_RESNET, "--networks"],
        ["compare", *FROM_RESNET], ["compose", *FROM_SIMCNN, "--method", "ga", "--modules"],
        ["compose", *FROM_SIMCNN, "--assemble"], ["relearn", *FROM_RESNET, *SELECTION.split(), "--selection"],
        ["influence", *FROM_RESNET, "--compare"], ["export", *FROM_RESNET, *PATCH.split(), "--switched"],
        ["decompose", "validate", *FROM_RESNET, "--csg"],
    ])  # fmt: skip
    return Case([*line, str(path)], f"{line[0]} {line[-1]}: {how}")
