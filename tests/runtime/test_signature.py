"""Functions of choices, called with the fields of these."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pytest

from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.signature import HandedIn, Named, Unset, Without, bind, checked, flat, parameters


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How fast.

    Attributes:
        rate: Steps a second, > 0.
        seed: Of everything random.
        hidden: Never asked for.
    """

    rate: float = 1.0
    seed: int = 0
    hidden: int = 7

    def __post_init__(self) -> None:
        if self.rate <= 0:
            raise ValueError(f"rate is {self.rate}")


@dataclass(frozen=True, kw_only=True)
class Color:
    """Which color.

    Args:
        shade: red or blue.
        seed: Of everything random.
    """

    shade: Literal["red", "blue"] = "red"
    seed: int = 0


OwnPace = Annotated[Pace, Without("hidden")]


@flat
def walk(
    place: str, far: int | None = None, *, name: Annotated[str, Named()] = "plain",
    name_options: Mapping[str, Any] | str | None = None, pace: OwnPace = Pace(hidden=9), color: Color = Color(),
    lent: Annotated[object, HandedIn()] = None,
) -> tuple[Any, ...]:  # fmt: skip
    """Walk.

    Slowly.

    Args:
        place: Where to.
        far: How far.
        name: Of whom.
        name_options: More of them.

    Returns:
        All of it.
    """
    return place, far, name, pace, color, lent


def test_fields_of_choices_are_parameters():
    assert [item.name for item in parameters(walk)] == [
        "place", "far", "name", "name_options", "rate", "seed", "shade",
    ]  # fmt: skip
    taken = {item.name: item for item in parameters(walk)}
    assert taken["place"].needed and taken["place"].positional and not taken["rate"].positional
    assert (taken["rate"].group, taken["rate"].about, taken["rate"].choice) == (
        "How fast",
        "Steps a second, > 0.",
        "pace",
    )
    assert taken["name"].named and str(inspect.signature(walk)).startswith(
        "(place: str, far: int | None = None, *, name"
    )
    shown = inspect.getdoc(walk) or ""
    assert shown.index("Slowly") < shown.index("place: Where to") < shown.index("rate: Steps") < shown.index("Returns:")


def test_values_reach_their_choices_and_a_shared_field_reaches_both():
    assert walk("home") == ("home", None, "plain", Pace(hidden=9), Color(), None)
    _, far, _, pace, color, _ = walk("home", 3, rate=2, shade="blue", seed=5)
    assert (far, pace, color) == (3, Pace(rate=2.0, seed=5, hidden=9), Color(shade="blue", seed=5))
    assert isinstance(pace.rate, float)
    assert flat(walk, lent="me")("home")[-1] == "me"


@pytest.mark.parametrize(
    ("words", "options", "said"),
    [
        (("home",), {"rat": 2}, "walk takes no `rat`; did you mean `rate`"),
        (("home",), {"hidden": 1}, "walk takes no `hidden`"),
        (("home",), {"lent": 1}, "walk takes no `lent`"),
        (("home",), {"rate": "fast"}, "`rate` is 'fast', expected a number"),
        (("home",), {"seed": True}, "`seed` is True, expected a whole number"),
        (("home",), {"seed": 1.5}, "`seed` is 1.5, expected a whole number"),
        (("home",), {"shade": "green"}, "`shade` is 'green', expected one of red, blue"),
        (("home",), {"rate": -1.0}, "rate is -1.0."),
        (("home", 1, 2), {}, "takes place, far without names"),
        (("home",), {"place": "there"}, "got `place` twice"),
    ],
)
def test_what_does_not_fit_is_one_sentence(words: tuple[Any, ...], options: dict[str, Any], said: str):
    with pytest.raises(UsageError) as raised:
        walk(*words, **options)
    assert isinstance(raised.value, ValueError) and said in str(raised.value)


def test_numbers_of_numpy_are_numbers():
    assert type(checked("n", int, np.int64(3))) is int and type(checked("n", float, np.float32(0.5))) is float
    assert checked("n", float | None, None) is None and type(checked("n", float | None, 2)) is float


def test_unset_fields_are_left_out_and_methods_keep_their_self():
    class Walker:
        @flat
        def step(self, *, pace: Annotated[Pace, Unset()] = None) -> Any:  # type: ignore[assignment]
            """Step.

            Args:
                pace: How.
            """
            return self, pace

    walker = Walker()
    assert walker.step(rate=2.0) == (walker, {"rate": 2.0})
    assert [item.default for item in parameters(Walker.step)] == [None, None, None]
    assert "pace" not in bind(Walker.step, {}) or bind(Walker.step, {})["pace"] == {}
