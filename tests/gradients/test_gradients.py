"""Every case of the table, every backward in the table, and a harness that sees what is wrong."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from numpy import ndarray

from .cases import CASES, backward_functions
from .cases_layers import rms_norm_case
from .harness import LIMIT, Arguments, Case, cotangents_for, errors_of, leaves_by_name, seeded

FEWEST_SHAPES = 3


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_gradient(case: Case) -> None:
    errors = errors_of(case)
    assert {name: error for name, error in errors.items() if not error <= LIMIT} == {}


@pytest.mark.parametrize("function", backward_functions(), ids=lambda function: function.__name__)
def test_every_backward_has_cases_of_several_shapes(function: Callable[..., Any]) -> None:
    shapes = {case.shapes for case in CASES if case.function is function}
    assert len(shapes) >= FEWEST_SHAPES, f"{function.__module__}.{function.__name__} has cases of {len(shapes)} shapes"


@pytest.mark.parametrize("function", backward_functions(), ids=lambda function: function.__name__)
def test_no_argument_is_checked_only_where_its_gradient_vanishes(function: Callable[..., Any]) -> None:
    somewhere: dict[str, bool] = {}
    for case in (case for case in CASES if case.function is function):
        outputs, cache = case.forward(**case.arguments)
        for name, gradient in leaves_by_name(case.backward(cotangents_for(outputs, seeded(case.name)), cache)).items():
            somewhere[name] = somewhere.get(name, False) or bool(np.any(gradient != 0))
    assert [name for name, seen in somewhere.items() if not seen] == []


def spoiled(spoil: Callable[[ndarray], ndarray]) -> Case:
    """A case whose backward is right but for what `spoil` does to dx."""
    case = rms_norm_case((3, 5), 1.0, 1e-6)

    def backward(dy: tuple[ndarray, ...], cache: Any) -> Arguments:
        gradients = case.backward(dy, cache)
        return gradients | {"x": spoil(gradients["x"].copy())}

    return case._replace(backward=backward)


def largest_entry_off(dx: ndarray) -> ndarray:
    dx.flat[np.argmax(np.abs(dx))] *= 1 + 1e-9
    return dx


def one_entry_not_a_number(dx: ndarray) -> ndarray:
    dx[1, 2] = np.nan
    return dx


@pytest.mark.parametrize(
    "spoil",
    [
        largest_entry_off,
        one_entry_not_a_number,
        lambda dx: dx * 5**-0.5,
        lambda dx: -dx,
        np.zeros_like,
        lambda dx: dx[::-1],
    ],
    ids=["one entry off by 1e-9", "NaN", "a factor missing", "sign", "nothing", "rows in another order"],
)
def test_the_harness_sees_a_wrong_gradient(spoil: Callable[[ndarray], ndarray]) -> None:
    errors = errors_of(spoiled(spoil))
    assert errors["x"] > LIMIT
    assert errors["weight"] <= LIMIT


def test_the_harness_wants_the_shape_of_the_argument() -> None:
    with pytest.raises(AssertionError, match="x has shape"):
        errors_of(spoiled(lambda dx: dx[:1]))


def test_the_harness_wants_every_gradient() -> None:
    case = rms_norm_case((3, 5), 1.0, 1e-6)
    with pytest.raises(AssertionError, match="gradients of"):
        errors_of(case._replace(backward=lambda dy, cache: {"x": case.backward(dy, cache)["x"]}))


@dataclass
class Product:
    """y = a · b · 0: its gradients are zero everywhere, unless told otherwise."""

    da: float = 0.0
    a: ndarray = field(default_factory=lambda: np.ones(3))

    def case(self) -> Case:
        return Case(Product.case, "product", {"a": self.a}, lambda a: ((0 * a,), None), lambda dy, _: {"a": np.full(3, self.da)})


def test_a_gradient_that_vanishes_must_be_exactly_zero() -> None:
    assert errors_of(Product().case()) == {"a": 0.0}
    assert errors_of(Product(da=1e-300).case()) == {"a": np.inf}


def test_where_the_output_is_infinite_the_cotangent_is_zero() -> None:
    (cotangent,) = cotangents_for((np.array([1.0, -np.inf, 2.0]),), seeded("empty row"))
    np.testing.assert_array_equal(cotangent == 0, [False, True, False])
