"""compose --assemble: a classifier of two halves of the digits, its files, and that it is measured like any other."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import deeppatch as dp
from deeppatch.data.images import to_float
from deeppatch.modular.assembly_controls import ASSEMBLED, ENSEMBLE

pytestmark = pytest.mark.slow  # seven stages, each a second or more

HALVES, TASK = ("digits:0-4", "digits:5-9"), "digits:0-4+digits:5-9"
FIXED = "--limit 100 --device cpu"
NETWORKS = {HALVES[0]: "simcnn_svhn_weak", HALVES[1]: "rescnn_svhn_weak"}  # of two architectures
OTHERWISE = "simcnn_svhn_weak"


class Place:
    """An output folder in which networks for both halves of the digits are trained and split."""

    def __init__(self, output: Path, launch) -> None:
        self.output, self.launch = output, launch

    def run(self, line: str, data: str = TASK):
        script, *rest = shlex.split(line)
        given = [*FIXED.split(), "-m", NETWORKS.get(data, OTHERWISE), "-d", data, "--output_dir", str(self.output)]
        return self.launch(script, [*given, *rest])

    def ran(self, line: str, data: str = TASK) -> str:
        result = self.run(line, data)
        assert (result.status, result.err) == (0, ""), result.err
        return result.out

    def folder(self, data: str, stage: str) -> Path:
        network = NETWORKS.get(data, OTHERWISE)
        (found,) = self.output.glob(f"{data.replace(':', '-')}/{network}/{stage}-*")
        return found

    @property
    def split(self) -> list[Path]:
        return [self.folder(half, "modularize") for half in HALVES]


@pytest.fixture(scope="module")
def done(tmp_path_factory, launch) -> Place:
    """The classifier, assembled once; tests change nothing."""
    place = Place(tmp_path_factory.mktemp("assemble") / "output", launch)
    for half in HALVES:
        place.ran("eval --train -e 12 -b 10 --lr 0.02", half)
        place.ran("modularize --budget 4 --sensitivity_images 10", half)
    place.ran("eval --train -e 2 -b 20")
    place.said = place.ran(f"compose --assemble {' '.join(map(str, place.split))}")
    return place


def read(done: Place, name: str) -> Any:
    path = done.folder(TASK, "compose-assembled") / name
    return json.loads(path.read_text()) if name.endswith("json") else pd.read_csv(path, dtype={"class": str})


def test_it_leaves_what_it_says_and_the_file_is_the_classifier(done):
    folder = done.folder(TASK, "compose-assembled")
    files = {"run.json", "assembled.safetensors", "modules.csv", "table.csv", "metrics.json"}
    assert {path.name for path in folder.iterdir()} == files
    model = dp.load(folder / "assembled.safetensors")
    assert model.classes == tuple("0123456789")
    data = dp.load_data(TASK, limit=100)
    accuracy = 100 * (model(to_float(data.test.pixels)).argmax(1) == data.test.labels).double().mean().item()
    table, metrics = read(done, "table.csv").set_index("network")["accuracy"], read(done, "metrics.json")
    assert table[ASSEMBLED] == pytest.approx(accuracy, abs=1e-3)
    assert list(table.index) == [ASSEMBLED, ENSEMBLE, "trained for these data"], "no half knows all ten digits"
    assert metrics["accuracy_percent"] == pytest.approx(table.to_dict(), abs=1e-3)
    assert [each["label"] for each in metrics["origins"]] == [0, 1, 2, 3, 4] * 2
    assert [each["model"][0] for each in metrics["origins"]] == ["1"] * 5 + ["2"] * 5
    modules = read(done, "modules.csv")
    assert modules["class"].tolist() == list("0123456789")
    assert modules["chosen"].all()
    assert accuracy > 25, "chance is a tenth"


def test_the_record_names_what_was_read(done):
    record = read(done, "run.json")
    names = {Path(name).name for name in record["inputs"]}
    assert names == {"modules.safetensors", "weights.safetensors"}
    assert len(record["inputs"]) == 5
    assert "finished already" in done.ran(f"compose -r --assemble {' '.join(map(str, done.split))}")


def test_compare_measures_it_beside_the_network_that_was_trained(done):
    done.ran("compare -n gaussion")
    ledger = pd.read_csv(next(done.output.glob(f"{TASK.replace(':', '-')}/simcnn_svhn_weak/compare*/ledger.csv")))
    clean = ledger[(ledger["view"] == "clean") & (ledger["measure"] == "accuracy")].set_index("network")["estimate"]
    assert clean[ASSEMBLED] == pytest.approx(read(done, "metrics.json")["accuracy_percent"][ASSEMBLED], abs=1e-3)


def test_compare_measures_it_against_its_models_together_where_none_was_trained_for_these_data(done, tmp_path):
    two = "digits:1+digits:6"
    done.ran(f"compose --assemble {' '.join(map(str, done.split))}", two)
    said = done.ran("compare -n gaussion", two)
    folder = done.output / two.replace(":", "-") / "simcnn_svhn_weak"
    ledger = pd.read_csv(next(folder.glob("compare*/ledger.csv")))
    clean = ledger[(ledger["view"] == "clean") & (ledger["measure"] == "accuracy")].set_index("network")["estimate"]
    table = pd.read_csv(next(folder.glob("compose*/table.csv"))).set_index("network")["accuracy"]
    assert list(clean.index) == [ENSEMBLE, ASSEMBLED]
    assert clean.to_dict() == pytest.approx(table[[ENSEMBLE, ASSEMBLED]].to_dict(), abs=1e-3)
    assert f"against {ENSEMBLE}" in said
    alone = tmp_path / "assembled.safetensors"
    alone.write_bytes(next(folder.glob("compose*/assembled.safetensors")).read_bytes())
    result = done.run(f"compare -n gaussion --base {alone}", two)
    assert (result.status, result.err.count("\n")) == (2, 1)
    assert "does not say of which models it is made; leave it in the folder of its run" in result.err


def test_it_is_exported_as_one_file_that_answers_the_same(done):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    few = "digits:0+digits:5"  # modules of all ten would take the exporter five times as long
    line = f"compose --from {' '.join(map(str, done.split))}"  # GradSplitter's words, for --assemble and -d
    done.ran(f"{line} --classes digits:0 digits:5")
    done.ran(f"{line} --classes digits:0 digits:5 --onnx -r")
    (path,) = done.output.rglob("assembled.onnx")
    assert len(list(path.parent.parent.glob("compose-assembled*"))) == 1, "the same classifier, now as ONNX, too"
    assert "finished already" in done.ran(f"{line} --onnx -r", few)
    pixels = to_float(dp.load_data(few, limit=20).test.pixels[:7])
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {"pixels": pixels.numpy()})
    model = dp.load(path.with_name("assembled.safetensors"))
    np.testing.assert_allclose(scores, model(pixels).numpy(), rtol=1e-3, atol=1e-5)
    assert torch.equal(torch.from_numpy(scores).argmax(1), model(pixels).argmax(1))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("compose --assemble . --target 3", "--target is of no use with --assemble: leave it out"),
        ("compose --no_calibration -m simcnn -d digits", "--no_calibration goes with --assemble"),
        ("compose --onnx -m simcnn -d digits", "--onnx goes with --assemble"),
        ("compose --assemble .", ". was not left by modularize; give folders of finished runs of it"),
        ("compose --assemble", "--assemble: name the folders that modularize has left"),
        ("compose --assemble {first} {first}/", "{first}: give each folder once"),
        ("compose --assemble nowhere", "nowhere: No such file or directory; check the path"),
        ("compose -d digits:0-5 --assemble {first}", "class 5: no model has it (1 simcnn_svhn_weak on digits:0-4: 0, "),
        ("compose -d digits:0,17 --assemble {first}", "digits has no class 17"),
    ],
)
def test_a_mistake_is_one_line(done, line, message):
    result = done.run(line.format(first=done.split[0]))
    assert result.status == 2
    assert message.format(first=done.split[0]) in result.err
    assert result.err.count("\n") == 1
