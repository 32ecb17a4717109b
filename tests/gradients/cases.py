"""All cases, and the public functions that must have some."""

from collections.abc import Callable
from importlib import import_module
from inspect import getmembers, isfunction
from pkgutil import iter_modules
from typing import Any

import ttr_ref

from . import cases_attention, cases_layers, cases_model, cases_time
from .harness import Case

CASES: list[Case] = [*cases_layers.CASES, *cases_time.CASES, *cases_attention.CASES, *cases_model.CASES]


def backward_functions() -> list[Callable[..., Any]]:
    """Every public function of ttr_ref whose name ends in _backward, module by module."""
    modules = [import_module(f"{ttr_ref.__name__}.{module.name}") for module in iter_modules(ttr_ref.__path__)]
    return [
        function
        for module in modules
        for name, function in getmembers(module, isfunction)
        if name.endswith("_backward") and not name.startswith("_") and function.__module__ == module.__name__
    ]
