"""What holds for parameters wherever they are: how matrices start, in which type masters are kept, what decays."""

from typing import TypeVar

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from .float_dtype import FloatDType
from .tree import named_tree_map

Tree = TypeVar("Tree")
FREQUENCIES = ("omega", "rope_omega")


def matrix_init(rng: np.random.Generator, fan_in: int, fan_out: int, gain: float = 1.0) -> Float[ndarray, "fan_in fan_out"]:
    """N(0, gain² / fan_in), float64."""
    return gain / np.sqrt(fan_in) * rng.standard_normal((fan_in, fan_out))


def as_masters(params: Tree, dtype: FloatDType) -> Tree:
    """Master weights: float64 for f64, else float32; frequencies are float64 always."""
    kept: Tree = named_tree_map(lambda name, a: a if is_frequency(name) else a.astype(dtype.compute), params)
    return kept


def is_frequency(name: str) -> bool:
    """Whether the leaf of this name holds angular frequencies, which stay float64."""
    return name.rpartition(".")[2] in FREQUENCIES


def is_matrix(name: str) -> bool:
    """Whether the leaf of this name is a matrix: these decay, and are computed with in storage type."""
    leaf = name.rpartition(".")[2]
    return leaf == "embedding" or leaf.startswith("w_")
