import json
from dataclasses import replace

import pytest

from kit.deploy.weights.card import Card
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
        (lambda card: card.pop("views"), "has no views"),
        (lambda card: card.update(pad_multiple="32"), "pad_multiple = '32'"),
        (lambda card: card.update(pad_multiple=True), "pad_multiple = True"),
        (lambda card: card["members"][0].pop("seed"), "has no members.0.seed"),
        (lambda card: card.update(members=["a"]), "members.0 = 'a'"),
        (lambda card: card.update(mean=[1.0]), "mean.0 = 1.0"),
    ],
)
def test_a_wrong_card_is_refused(tiny_weights: Exported, change, message: str):
    found = json.loads(tiny_weights.card.to_json())
    change(found)
    with pytest.raises(WeightsError, match=message):
        Card.from_json(json.dumps(found))


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_card_is_a_json_object(text: str):
    with pytest.raises(WeightsError, match=r"the card in here\.json"):
        Card.from_json(text, "here.json")
