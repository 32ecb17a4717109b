"""Parameters, gradients and optimiser moments are nested NamedTuples of arrays with the same fields; here is how to walk them.

A leaf's name is its path, `blocks.3.attention.w_qkv`. None stands for a part that a model does not have.
"""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from numpy import ndarray

Tree = TypeVar("Tree")


def tree_map(f: Callable[..., Any], tree: Tree, *others: Any) -> Tree:
    """The tree of f(leaf, other leaves at the same place)."""
    return named_tree_map(lambda _, *leaves: f(*leaves), tree, *others)


def named_tree_map(f: Callable[..., Any], tree: Any, *others: Any, name: str = "") -> Any:
    """The tree of f(name, leaf, other leaves at the same place).

    Raises ValueError if a tuple has another length elsewhere.
    """
    if tree is None:
        return None
    if not isinstance(tree, tuple):
        return f(name, tree, *others)
    labels = getattr(tree, "_fields", range(len(tree)))
    children = [
        named_tree_map(f, *nodes, name=f"{name}.{label}" if name else str(label)) for label, *nodes in zip(labels, tree, *others, strict=True)
    ]
    return type(tree)(*children) if hasattr(tree, "_fields") else type(tree)(children)


def named_leaves(tree: Any) -> dict[str, ndarray]:
    """Every leaf under its name, in the order of the fields."""
    leaves: dict[str, ndarray] = {}
    named_tree_map(leaves.__setitem__, tree)
    return leaves


def from_named_leaves(template: Tree, leaves: dict[str, ndarray]) -> Tree:
    """A tree shaped like the template with the leaves given by name.

    Raises KeyError for a name that is missing or unknown, ValueError for an array of another shape.
    """
    expected = named_leaves(template)
    if wrong := sorted(set(expected) ^ set(leaves)):
        raise KeyError(f"{wrong[0]} is {'missing' if wrong[0] in expected else 'unknown'}")
    for name, leaf in expected.items():
        if leaf.shape != leaves[name].shape:
            raise ValueError(f"{name} has shape {leaves[name].shape}, expected {leaf.shape}")
    return named_tree_map(lambda name, _: leaves[name], template)


def leaves_of(tree: Any) -> Iterator[Any]:
    """The leaves in the order of the fields."""
    if isinstance(tree, tuple):
        for child in tree:
            yield from leaves_of(child)
    elif tree is not None:
        yield tree
