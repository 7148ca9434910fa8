import random

import pytest

from raysweep.config.space import Choice, Grid, IntRange, LogInt, LogUniform, Uniform, as_tree, parse

FORMS = [
    ({"grid": [1, "a", None, True, 0.5]}, Grid((1, "a", None, True, 0.5))),
    ({"choice": ["a", "b"]}, Choice(("a", "b"))),
    ({"uniform": [0, 1]}, Uniform(0.0, 1.0)),
    ({"loguniform": [0.01, 100]}, LogUniform(0.01, 100.0)),
    ({"int": [1, 3]}, IntRange(1, 3)),
    ({"logint": [1, 64]}, LogInt(1, 64)),
]


@pytest.mark.parametrize(("tree", "domain"), FORMS)
def test_parse_and_back(tree, domain):
    assert parse(tree) == domain
    assert parse(as_tree(domain)) == domain


@pytest.mark.parametrize("domain", [d for _, d in FORMS if not isinstance(d, Grid)])
def test_draws_stay_inside_and_depend_on_the_stream_alone(domain):
    rng = random.Random(3)
    draws = [domain.draw(rng) for _ in range(300)]
    again = random.Random(3)
    assert draws == [domain.draw(again) for _ in range(300)]
    if isinstance(domain, Choice):
        assert set(draws) == set(domain.values)
    else:
        assert all(domain.low <= d <= domain.high for d in draws)


def test_both_ends_of_whole_ranges_are_drawn():
    rng = random.Random(0)
    assert {IntRange(1, 3).draw(rng) for _ in range(100)} == {1, 2, 3}
    assert {LogInt(1, 3).draw(rng) for _ in range(100)} == {1, 2, 3}


def test_real_draws_have_six_digits():
    draw = LogUniform(0.01, 100.0).draw(random.Random(1))
    assert draw == float(f"{draw:.6g}")


def test_loguniform_spreads_over_decades():
    rng = random.Random(0)
    low = sum(LogUniform(0.01, 100.0).draw(rng) < 1 for _ in range(1000))
    assert 430 < low < 570


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ([0, 1], r"write \{grid: \[0, 1\]\}"),
        (3, r"write \{grid: \[3\]\}"),
        ({}, "a domain is one of"),
        ({"grid": [1], "int": [1, 2]}, r"got the keys \['grid', 'int'\]"),
        ({"loguniforn": [1, 2]}, "unknown domain 'loguniforn'; did you mean: loguniform"),
        ({"grid": 3}, "'grid' takes a list"),
        ({"grid": []}, "'grid' needs at least one value"),
        ({"grid": [[1, 2]]}, r"'grid' takes plain values, got \[1, 2\]; for lists and mappings write one arm each"),
        ({"choice": [{"a": None}]}, r"got \{a: null\}"),
        ({"uniform": [0]}, r"'uniform' takes two numbers, \[low, high\], got \[0\]"),
        ({"uniform": [0, "a"]}, "'uniform' takes two numbers"),
        ({"int": [0, 1.5]}, "'int' takes two whole numbers"),
        ({"int": [True, 3]}, r"got \[true, 3\]"),
        ({"uniform": [1, 0]}, "'uniform' needs low < high"),
        ({"uniform": [0, float("inf")]}, "'uniform' needs low < high"),
        ({"loguniform": [0, 1]}, "'loguniform' needs low > 0"),
        ({"logint": [0, 4]}, "'logint' needs low > 0"),
    ],
)
def test_bad_domains_say_the_right_form(tree, message):
    with pytest.raises(ValueError, match=message):
        parse(tree)
