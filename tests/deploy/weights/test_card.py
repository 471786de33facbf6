import json
from dataclasses import replace
from pathlib import Path

import pytest

from kit.deploy.weights.card import Card, read_about
from kit.errors import WeightsError
from kit.pipeline.export import Exported

CONTRACT = (
    "kit_version recipe members score classes gsd_m mean std views pad_multiple input output torch_version created "
    "parity_max_abs"
)


def test_card_survives_json(tiny_weights: Exported):
    card = tiny_weights.card
    assert Card.from_json(card.to_json()) == card
    assert Card.from_json(card.to_json(file_sha256="x", later_key="y")) == card
    assert Card.from_json(replace(card, score=None).to_json()).score is None


def test_card_has_the_contract_keys(tiny_weights: Exported):
    keys = json.loads(tiny_weights.card.to_json())
    assert set(CONTRACT.split()) <= keys.keys()
    assert set(keys["members"][0]) == {"recipe", "fold", "seed", "sha256", "score"}
    assert keys["classes"] == ["background", "building"]
    assert keys["mean"] == [[123.0, 116.0, 103.0]] * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda card: card.pop("views"), "field views: Field required"),
        (lambda card: card.update(pad_multiple="32"), "field pad_multiple: Input should be a valid integer, not '32'"),
        (lambda card: card.update(pad_multiple=True), "field pad_multiple: .*, not True"),
        (lambda card: card["members"][0].pop("seed"), "field members.0.seed: Field required"),
        (lambda card: card.update(recipe="\x1b[2Jtiny"), "field recipe"),
        (lambda card: card.update(gsd_m=-1), "field gsd_m: Input should be greater than or equal to 0, not -1"),
        (lambda card: card.update(score=1.5), "field score"),
        (lambda card: card.update(views="all"), "field views: .*, not 'all'"),
        (lambda card: card.update(members=["a"]), "field members.0: .*, not 'a'"),
        (lambda card: card.update(mean=[1.0]), "field mean.0: .*, not 1.0"),
        (lambda card: card.update(members=[]), "field members: .* at least 1 item"),
        (lambda card: card.update(classes=[]), "field classes: .* at least 1 item"),
    ],
)
def test_a_wrong_card_is_refused(tiny_weights: Exported, change, message: str):
    found = json.loads(tiny_weights.card.to_json())
    change(found)
    with pytest.raises(WeightsError, match=message):
        Card.from_json(json.dumps(found))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_numbers_are_finite(tiny_weights: Exported, number: str):
    text = tiny_weights.card.to_json().replace('"gsd_m": 0.15', f'"gsd_m": {number}')
    with pytest.raises(WeightsError, match="the card in here"):
        Card.from_json(text, "here")


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, "", "\0"])
def test_a_card_is_a_json_object(text: str):
    with pytest.raises(WeightsError, match=r"the card in here\.json"):
        Card.from_json(text, "here.json")


def test_weights_of_votes(tiny_weights: Exported):
    card = tiny_weights.card
    older = json.loads(card.to_json())
    del older["weights"]
    assert Card.from_json(json.dumps(older)) == card
    weighted = replace(card, weights=(0.75, 0.25))
    assert Card.from_json(weighted.to_json()) == weighted
    for weights in ((1.0,), (0.5, 0.6)):
        with pytest.raises(WeightsError, match=r"weights that add to .* for 2 members, expected one each, adding to 1"):
            Card.from_json(replace(card, weights=weights).to_json())


def test_texts_for_the_card(tmp_path: Path):
    file = tmp_path / "about.json"
    file.write_text('{"imagery": "(c) somebody", "not for": "counting people"}')
    assert read_about(file).texts == {"imagery": "(c) somebody", "not for": "counting people"}
    for text in ('{"imagery": 3}', "[]", "{", '{"imagery": "a\\u001b[31m"}'):
        file.write_text(text)
        with pytest.raises(WeightsError, match=r"about\.json") as error:
            read_about(file)
        assert "expected an object of texts" in error.value.hint
    with pytest.raises(WeightsError, match="cannot be read"):
        read_about(tmp_path / "none.json")
