"""The model card: a head that YAML reads, tables that Markdown reads, and text of users that stays text."""

from __future__ import annotations

import re

import pytest
import yaml

from deeppatch.report.judging import judge_network
from deeppatch.report.model_card import model_card, text

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>|`*_'


def card_of(ledger, target, **options):
    tidy = ledger.frame(draws=10)
    return model_card(ledger, tidy, target, judge_network(tidy, target, ledger.base), **options)


@pytest.fixture(scope="module")
def card(blur_and_grid) -> str:
    return card_of(blur_and_grid, "switched")


def head_of(card: str) -> dict:
    opening, head, body = card.split("---\n", 2)
    assert opening == ""
    assert body.startswith("\n# ")
    return yaml.safe_load(head)


def test_the_head_has_the_keys_of_model_cards(card, blur_and_grid):
    head = head_of(card)
    assert (head["model_name"], head["datasets"], head["metrics"]) == ("switched", ["cifar10"], ["accuracy"])
    (entry,) = head["model-index"]
    assert entry["name"] == "switched"
    found = {each["dataset"]["name"]: each["metrics"][0] for each in entry["results"]}
    assert list(found) == ["cifar10", *(f"cifar10, {name}" for name in ("blurred", "degraded", "held out", "mixed"))]
    clean = 100 * blur_and_grid.correct("switched", "clean").mean()
    assert found["cifar10"]["value"] == pytest.approx(clean, abs=1e-4)
    assert {each["type"] for each in found.values()} == {"accuracy"}
    assert {each["task"]["type"] for each in entry["results"]} == {"image-classification"}


def test_rows_of_tables_have_as_many_cells_as_their_head(card):
    tables = re.findall(r"(?:^\|.*\n)+", card, re.MULTILINE)
    assert len(tables) == 2
    for table in tables:
        counts = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(counts) == 1, table


def test_what_users_write_is_text(hostile):
    (name,) = (each for each in hostile.networks if each != "pretrained")
    card = card_of(hostile, name)
    assert head_of(card)["model_name"] == name
    outside = re.sub(r"^(`{3,})text\n.*?\n\1$", "", card.split("---\n", 2)[2], flags=re.MULTILINE | re.DOTALL)
    assert "````text\n" in card, "the fence is longer than the backticks in a command"
    assert "<" not in outside
    assert text(HOSTILE) in outside
    for table in re.findall(r"(?:^\|.*\n)+", card, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_a_line_break_ends_no_row_and_no_head(ledger_of):
    ledger = ledger_of([("fog", 1)], ("pretrained", "two\nlines\x0b---\n"), about={"model": "a\n---\nb: c"})
    card = card_of(ledger, "two\nlines\x0b---\n")
    assert head_of(card)["model_name"].startswith("two\nlines")
    assert "\n# two lines ---\n" in card


def test_limits_and_commands_are_there(card):
    assert "- val was seen" in card
    assert "command: python src/compare.py" in card
    assert "switched: digest: digest of switched" in card
