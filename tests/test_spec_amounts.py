from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.spec.amounts import (
    format_at_least,
    format_bytes,
    format_count,
    format_seconds,
    parse_bytes,
    parse_count,
    parse_params,
    parse_seconds,
)


@pytest.mark.parametrize(
    ("given_value", "expected"),
    [
        ("0.5%", 0.005),
        ("100%", 1.0),
        (0.005, 0.005),
        (1.0, 1.0),
        ("0.02", 0.02),
        ("100000", 100_000),
        (100_000, 100_000),
        (1, 1),
        ("1", 1),
        ("1e5", 100_000),
        ("100k", 100_000),
        ("100K", 100_000),
        ("2M", 2_000_000),
        ("1.5M", 1_500_000),
        ("100_000", 100_000),
        ("100,000", 100_000),
        (2e5, 200_000),
    ],
)
def test_params(given_value, expected):
    parsed = parse_params(given_value)
    assert parsed == pytest.approx(expected)
    assert type(parsed) is type(expected)


@pytest.mark.parametrize(
    ("given_value", "expected"),
    [("2GiB", 2**31), ("500MB", 500_000_000), ("5MiB", 5 * 2**20), ("1073741824", 2**30), (1024, 1024),
     ("1.5 GiB", 1_610_612_736), ("3g", 3 * 2**30)],
)  # fmt: skip
def test_bytes(given_value, expected):
    assert parse_bytes(given_value) == expected


@pytest.mark.parametrize(
    ("given_value", "expected"),
    [("5m", 300), ("20m", 1200), ("1h30m", 5400), ("1h 30m", 5400), ("90s", 90), ("300", 300), (300, 300),
     ("2D", 172_800), (0.5, 0.5)],
)  # fmt: skip
def test_seconds(given_value, expected):
    assert parse_seconds(given_value) == expected


@pytest.mark.parametrize("parse", [parse_params, parse_bytes, parse_seconds, parse_count])
@pytest.mark.parametrize(
    "value",
    [0, -1, "-1", "0", "0%", "101%", "-5m", math.nan, math.inf, "nan", "inf", "1e30", 1e30, 10**400, "", " ",
     "5x", "5 apples", True, None, [1], {"a": 1}, "1e999", "٣"],
)  # fmt: skip
def test_what_is_no_amount_is_refused_with_its_rule(parse, value):
    with pytest.raises(ValueError, match="must be"):
        parse(value)


@pytest.mark.parametrize("value", ["5m5m", "30m1h", "1h30", "m", "5mm", "1,5x"])
def test_slips_in_durations_are_refused(value):
    with pytest.raises(ValueError, match="must be a duration"):
        parse_seconds(value)


@pytest.mark.parametrize("value", ["1.5", 2.5, "0.5%"])
def test_counts_are_whole(value):
    with pytest.raises(ValueError, match="whole"):
        parse_count(value)


def test_a_fraction_of_a_parameter_is_refused():
    with pytest.raises(ValueError, match="must be a count"):
        parse_params(1.5)


@given(st.text(max_size=20))
def test_any_text_is_read_or_refused(text):
    for parse in (parse_params, parse_bytes, parse_seconds, parse_count):
        try:
            amount = parse(text)
        except ValueError as error:
            said = str(error)
        else:
            said = "must be"
            assert amount > 0
        assert said.startswith("must be")


@given(st.integers(1, 2**40))
def test_shown_bytes_read_back_within_their_digits(value):
    assert parse_bytes(format_bytes(value)) == pytest.approx(value, rel=0.05)


def test_amounts_for_people():
    assert format_bytes(512) == "512 B"
    assert format_bytes(1.5 * 2**30) == "1.5 GiB"
    assert format_seconds(3.25) == "3.2 s"
    assert format_seconds(59.7) == "1 min"
    assert format_seconds(270) == "4 min 30 s"
    assert format_seconds(7500) == "2 h 5 min"
    assert format_count(9984) == "9,984"
    assert format_count(165_888) == "165.9 k"
    assert format_count(999_960) == "1.0 M"
    assert format_count(22_713_216) == "22.7 M"


@given(st.integers(1, 2**49))
def test_the_smallest_that_would_do_does_when_it_is_given_back(value):
    for field, parse in (("max_memory", parse_bytes), ("max_time", parse_seconds)):
        if field == "max_memory" or value < 10**8:
            assert value <= parse(format_at_least(field, value)) <= 1.11 * value
    if value < 10**12:
        assert parse_params(format_at_least("max_adapter_params", value)) == value


@given(st.floats(1e-6, 1.0))
def test_the_smallest_share_that_would_do_does(value):
    assert value <= float(format_at_least("space.max_share", value)) <= 1.002 * value


def test_the_smallest_that_would_do_is_short():
    assert format_at_least("max_memory", 63_500_000) == "60.6MiB"
    assert format_at_least("max_adapter_size", 900) == "900B"
    assert format_at_least("max_adapter_params", 384.0) == "384"
    assert format_at_least("space.max_share", 0.01) == "0.01001"
