"""Prices: the shipped table, and others of its form."""

import re

import pytest

from foundation.errors import UserError
from lpo_jax.plan.chips import CHIPS
from lpo_jax.plan.prices import SHIPPED, Price, Prices


def test_the_shipped_table_is_dated_and_names_its_source():
    table = Prices.load(SHIPPED)
    assert re.fullmatch(r"20\d\d-\d\d(-\d\d)?", table.date) and "github.com/" in table.source
    assert {"v5e", "v5p", "v6e"} <= set(table.chips) <= set(CHIPS)
    for price in table.chips.values():
        assert price.on_demand is not None and (price.spot is None or price.spot < price.on_demand)


def test_a_table_may_say_little(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("date: 2031-05-06\nsource: our contract\nchips: {v6e: {region: here, spot: 1}}\n")
    assert Prices.load(file) == Prices("2031-05-06", "our contract", {"v6e": Price("here", None, 1.0)})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file"),
        ("date: [", "not valid YAML"),
        ("- v5e", "it holds no mapping"),
        ("source: x\nchips: {}", "missing key date"),
        ("date: x\nsource: x\nchips: {v5e: {region: x, spot: -1}}", "chips.v5e.spot=-1"),
        ("date: x\nsource: x\nchips: {v5e: {region: x, on_demnad: 1}}", "did you mean 'on_demand'"),
    ],
)
def test_a_table_that_is_none_is_named(tmp_path, text, message):
    file = tmp_path / "mine.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        Prices.load(file)
    assert str(file) in str(error.value)
