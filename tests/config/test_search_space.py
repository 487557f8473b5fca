"""Hydra's sweep syntax as Optuna's distributions."""

import pytest

pytest.importorskip("optuna")
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from brats_lightning.config.search_space import as_overrides, combinations, search_space


@pytest.mark.parametrize(
    ("value", "distribution"),
    [
        ("interval(1e-4,0.5)", FloatDistribution(1e-4, 0.5)),
        ("interval(2,8)", FloatDistribution(2, 8)),
        ("int(interval(2,8))", IntDistribution(2, 8)),
        ("tag(log,interval(1e-4,1e-2))", FloatDistribution(1e-4, 1e-2, log=True)),
        ("tag(log,int(interval(1,64)))", IntDistribution(1, 64, log=True)),
        ("unet,resunet", CategoricalDistribution(["unet", "resunet"])),
        ("choice(a,3,0.5,true)", CategoricalDistribution(["a", 3, 0.5, True])),
        ("[8,16],'x,y',null", CategoricalDistribution(["[8,16]", "'x,y'", "null"])),
        ("shuffle(c,a,b)", CategoricalDistribution(["c", "a", "b"])),
        ("range(1,4)", IntDistribution(1, 3)),
        ("range(8,2,-3)", IntDistribution(5, 8, step=3)),
        ("range(0,1,0.25)", FloatDistribution(0.0, 0.75, step=0.25)),
    ],
)
def test_what_is_drawn(value, distribution):
    space, fixed = search_space([f"key={value}"])
    assert space == {"key": distribution}
    assert fixed == []


def test_the_last_override_of_a_key_counts():
    given = ["lr=interval(0.1,0.2)", "model=a,b", "~loss", "lr=0.1", "+new=1,2", "model=choice(c,d)"]
    space, fixed = search_space(given)
    assert space == {"+new": CategoricalDistribution([1, 2]), "model": CategoricalDistribution(["c", "d"])}
    assert fixed == ["~loss", "lr=0.1"]


@pytest.mark.parametrize("value", ["interval(2,1)", "tag(log,interval(0,1))", "range(3,3)"])
def test_what_cannot_be_drawn_is_named(value):
    with pytest.raises(ValueError, match=r"^optimizer\.lr: .*"):
        search_space([f"optimizer.lr={value}"])


def test_values_return_as_overrides():
    values = {"a": "null", "+b": True, "c": 1e-5, "d": "[8,16]", "e": "'x y'", "f": 3}
    assert as_overrides(values) == ["a=null", "+b=true", "c=1e-05", "d=[8,16]", "e='x y'", "f=3"]


def test_the_size_of_a_grid():
    assert combinations(search_space(["a=x,y,z", "b=range(0,1,0.25)", "c=int(interval(1,5))"])[0]) == 3 * 4 * 5
    with pytest.raises(ValueError, match="lr: a grid needs single values"):
        combinations(search_space(["a=x,y", "lr=interval(0.1,0.5)"])[0])
