"""A gradient written by hand against the complex step (Squire & Trapp 1998, SIAM Review 40, 110).

For f analytic and real on the real line, f(x + ih) = f(x) + ih f′(x) − h²f″(x)/2 − …, so f′(x) = Im f(x + ih)/h up to h². Nothing is subtracted, so
nothing cancels, and with h = 1e-30 the truncation is far below rounding: what is left is the rounding of f itself, some 1e-15.

f is L = Σ cotangent · output with random cotangents: under equal ones the gradient of a softmax vanishes and any code passes.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
from numpy import ndarray

from ttr_ref.tree import named_leaves, named_tree_map, tree_map

STEP = 1e-30
LIMIT = 1e-11

Arguments = dict[str, Any]
"""Trees of float64 arrays by the name of the argument."""


class Case(NamedTuple):
    """One backward at one point.

    forward takes the arguments and returns (outputs, cache); backward takes (cotangents of the outputs, cache) and returns gradients under the
    arguments' names.
    """

    function: Callable[..., Any]
    """The function of ttr_ref that is checked."""
    label: str
    arguments: Arguments
    forward: Callable[..., tuple[tuple[ndarray, ...], Any]]
    backward: Callable[[tuple[ndarray, ...], Any], Arguments]

    @property
    def name(self) -> str:
        """What pytest and the table call it."""
        return f"{self.function.__module__.rpartition('.')[2]}.{self.function.__name__}: {self.label}"

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of all leaves."""
        return tuple(leaf.shape for leaf in leaves_by_name(self.arguments).values())


def seeded(label: str) -> np.random.Generator:
    """A generator of the label's own, so that a new case changes no other."""
    return np.random.default_rng(crc32(label.encode()))


def randomised(tree: Any, rng: np.random.Generator, size: float = 0.3) -> Any:
    """The tree with noise on every leaf, so that no weight is exactly 1 and no table exactly 0."""
    return tree_map(lambda a: a + size * rng.standard_normal(a.shape), tree)


def leaves_by_name(arguments: Arguments) -> dict[str, ndarray]:
    """Every leaf of every argument under `argument` or `argument.path`."""
    return {
        f"{argument}.{path}" if path else argument: leaf for argument, tree in arguments.items() for path, leaf in named_leaves(tree).items()
    }


def errors_of(case: Case) -> dict[str, float]:
    """The worst relative error of each leaf's gradient.

    Raises AssertionError if a gradient is missing, is not asked for, or has another shape than its leaf.
    """
    outputs, cache = case.forward(**case.arguments)
    cotangents = cotangents_for(outputs, seeded(case.name))
    analytic = leaves_by_name(case.backward(cotangents, cache))
    leaves = leaves_by_name(case.arguments)
    assert analytic.keys() == leaves.keys(), f"{case.name}: gradients of {sorted(analytic)}, arguments {sorted(leaves)}"
    for name, leaf in leaves.items():
        assert analytic[name].shape == leaf.shape, f"{case.name}: {name} has shape {leaf.shape}, its gradient {analytic[name].shape}"
    return {name: relative_error(analytic[name], numeric) for name, numeric in numeric_gradients(case, cotangents)}


def cotangents_for(outputs: tuple[ndarray, ...], rng: np.random.Generator) -> tuple[ndarray, ...]:
    """Random ones; 0 where the output is −∞, the LSE of a query that reads nothing."""
    return tuple(np.where(np.isfinite(y), rng.standard_normal(y.shape), 0) for y in outputs)


def numeric_gradients(case: Case, cotangents: tuple[ndarray, ...]) -> Iterator[tuple[str, ndarray]]:
    """(name, gradient) of every leaf: one forward for each entry."""
    for name, leaf in leaves_by_name(case.arguments).items():
        gradient = np.empty(leaf.shape)
        for entry in np.ndindex(leaf.shape):
            outputs, _ = case.forward(**stepped(case.arguments, name, entry))
            gradient[entry] = sum(np.sum(c * y.imag) for c, y in zip(cotangents, outputs, strict=True)) / STEP
        yield name, gradient


def stepped(arguments: Arguments, name: str, entry: tuple[int, ...]) -> Arguments:
    """The arguments with ih added to one entry of one leaf."""
    argument, _, path = name.partition(".")

    def at(here: str, leaf: ndarray) -> ndarray:
        if here != path:
            return leaf
        moved = leaf.astype(complex)
        moved[entry] += 1j * STEP
        return moved

    return {**arguments, argument: named_tree_map(at, arguments[argument])}


def relative_error(analytic: ndarray, numeric: ndarray) -> float:
    """The largest |a − n| / max(|n|, rms n) of all entries. A gradient that is zero everywhere must be exactly that."""
    size = np.sqrt(np.mean(np.square(numeric))) if numeric.size else 0.0
    if size == 0:
        return 0.0 if np.all(analytic == 0) else np.inf
    error = np.max(np.abs(analytic - numeric) / np.maximum(np.abs(numeric), size))
    return float(np.where(np.isnan(error), np.inf, error))
