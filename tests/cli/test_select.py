"""assess with estimates, refinement, elimination and a budget of memory: what it leaves and what it refuses."""

from __future__ import annotations

import json
import math

import pytest

from deeppatch import runtime
from deeppatch.graph.network_graph import Graph
from deeppatch.graph.tracing import Untraceable
from deeppatch.localization.successive_elimination import LayerElimination

FILES = {"ranking.json", "ranking.csv", "suspicion.png", "run.json"}
EXACT = {"taylor": "perfloss", "activation": "featswap"}


def ranking(bench, stage: str) -> dict:
    return json.loads((bench.at(stage) / "ranking.json").read_text())


@pytest.mark.parametrize("method", EXACT)
def test_estimates_are_ranked_and_can_be_patched_with(pretrained, method):
    said = pretrained.ran(f"select -f {method}").out
    assert "ranked; written to" in said
    assert pretrained.files(f"assess-{method}") == FILES
    content = ranking(pretrained, f"assess-{method}")
    assert content["method"] == method
    sign = 1 if method == "taylor" else -1
    for layer in content["layers"].values():
        scores = [sign * layer["scores"][channel] for channel in layer["order"]]
        assert scores == sorted(scores)
        assert all(map(math.isfinite, scores))
    pretrained.ran(f"correct -f {method} --crt_epoch 1 --lr 0.1")
    assert "patch.safetensors" in pretrained.files(f"correct-patch-replace-{method}")


@pytest.mark.parametrize("method", EXACT)
def test_refined_filters_are_those_nearest_the_cut_with_their_exact_scores(pretrained, chain, method):
    pretrained.ran(f"select -f {method}")
    said = pretrained.ran(f"select -f {method} --refine 4").out
    layers = ranking(chain, f"assess-{EXACT[method]}")["layers"]
    assert f"ablating {sum(min(4, len(layer['order'])) for layer in layers.values())} filters" in said
    assert pretrained.files(f"assess-{method}-refine4") == FILES
    plain, content = ranking(pretrained, f"assess-{method}"), ranking(pretrained, f"assess-{method}-refine4")
    sign = 1 if method == "taylor" else -1
    for name, layer in content["layers"].items():
        refined = {int(channel): score for channel, score in content["refined"][name].items()}
        assert refined == pytest.approx({c: layers[name]["scores"][c] for c in refined}, abs=1e-12)
        order, before = layer["order"], plain["layers"][name]["order"]
        cut = len(order) // 4
        assert set(order[cut - 2 : cut + 2]) == set(refined) == set(before[cut - 2 : cut + 2])
        assert order[: cut - 2] + order[cut + 2 :] == before[: cut - 2] + before[cut + 2 :], "nothing else moves"
        window = [(sign * refined[channel], channel) for channel in order[cut - 2 : cut + 2]]
        assert window == sorted(window)


@pytest.mark.parametrize("method", [pytest.param("perfloss", marks=pytest.mark.slow), "featswap"])
def test_bfloat16_ranks_much_as_float32_and_is_left_alone_where_no_processor_has_it(
    pretrained, chain, monkeypatch, method
):
    with runtime.assume_bfloat16():
        assert "no bfloat16 arithmetic" not in pretrained.ran(f"select -f {method} --amp").out
    rough, exact = ranking(pretrained, f"assess-{method}"), ranking(chain, f"assess-{method}")
    for name, layer in exact["layers"].items():
        apart = [abs(a - b) for a, b in zip(rough["layers"][name]["scores"], layer["scores"], strict=True)]
        assert sum(apart) / len(apart) < 0.05
    monkeypatch.setattr("deeppatch.runtime.has_bfloat16", lambda _device: False)
    assert "faster in float32" in pretrained.ran(f"select -f {method} --amp").out
    assert ranking(pretrained, f"assess-{method}")["layers"] == exact["layers"]


@pytest.mark.parametrize("method", [pytest.param("perfloss", marks=pytest.mark.slow), "featswap"])
def test_elimination_gives_the_exact_ranking_while_all_filters_are_active(pretrained, chain, monkeypatch, method):
    monkeypatch.setattr(LayerElimination, "decide", lambda layer, delta, unread: None)
    said = pretrained.ran(f"select -f {method} --race 1e-12").out
    assert "1.0 times fewer" in said
    assert pretrained.files(f"assess-{method}-race1e-12") == FILES
    raced, exact = ranking(pretrained, f"assess-{method}-race1e-12"), ranking(chain, f"assess-{method}")
    assert raced["image_passes"] == raced["all_image_passes"]
    for name, layer in exact["layers"].items():
        assert raced["layers"][name]["order"] == layer["order"]
        assert raced["layers"][name]["scores"] == pytest.approx(layer["scores"], abs=1e-12)


def test_elimination_saves_passes_and_says_so(pretrained):
    pretrained.ran("select -f perfloss --race 0.4 --susp_ratio 0.5 --susp_side rear -b 4")
    content = ranking(pretrained, "assess-perfloss-race0.4-ratio0.5-rear")
    assert 0 < content["image_passes"] < content["all_image_passes"]
    assert (content["eliminate"], content["eliminated_for_ratio"]) == (0.4, 0.5)


def test_little_memory_means_smaller_batches_and_the_same_ranking(pretrained, chain):
    said = pretrained.ran("select -f perfloss --mem 1").out
    assert ", 12 at a time" not in said
    assert ranking(pretrained, "assess-perfloss")["layers"] == ranking(chain, "assess-perfloss")["layers"]


@pytest.mark.parametrize("method", [pytest.param("perfloss", marks=pytest.mark.slow), "featswap"])
def test_a_network_that_cannot_be_traced_is_ranked_the_plain_way(pretrained, chain, monkeypatch, method):
    def refuse(self, network, example):
        raise Untraceable("its forward pass depends on values")

    monkeypatch.setattr(Graph, "__init__", refuse)
    said = pretrained.ran(f"select -f {method}").out
    assert "cannot be run as a graph: its forward pass depends on values; every filter takes a full" in said
    assert ranking(pretrained, f"assess-{method}")["layers"] == ranking(chain, f"assess-{method}")["layers"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("--mem 0", "--mem 0: give at least 1 MiB"),
        ("-f taylor --refine -1", "--refine -1: give 0 or more filters"),
        ("-f perfloss --refine 3", "--refine can only be used with -f taylor and activation, not with perfloss"),
        ("--race 0.5", "--race 0.5: give a probability above 0, below 0.5"),
        ("-f taylor --race 0.1", "--race can only be used with -f perfloss and featswap, not with taylor"),
        ("--race 0.1 --susp_side random", "--susp_side random makes no cut"),
    ],
)
def test_what_does_not_go_together_is_refused(pretrained, options, complaint):
    assert complaint in pretrained.refused(f"select {options}")
