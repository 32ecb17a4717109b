"""The one place where kernels get their compiler flags and their cache.

No fast-math flag at all: what is fused and in which order sums run is written down with the vectors of simd.py, so a row gets the same bits from
whichever kernel it passes through. `error_model="numpy"`: a division by zero is infinite, as in the oracle.

Numba's own cache looks at the file of one function and keeps serving old code when a file that it calls changes (numba issue 1833), and it cannot
find a function again that closes over another one. Here a folder is named by a hash of every source file of the kernels and of the oracle, whose
constants they share, so any change starts an empty folder. A kernel made for one specification is told from its sisters by the words of that
specification.
"""

import functools
import hashlib
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numba import njit
from numba.core.caching import CompileResultCacheImpl, FunctionCache, IndexDataCacheFile, _CacheLocator

import ttr_ref
from ttr_fast.cpu.linking import LinkingCompiler, set_environments

FLAGS: dict[str, Any] = {"error_model": "numpy"}
WITHOUT_WRAPPERS: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
"""For what Python does not call."""


@functools.cache
def sources_hash() -> str:
    """SHA-256 over the names and contents of all source files that kernels are made of, short."""
    digest = hashlib.sha256()
    for folder in (Path(__file__).parent, Path(ttr_ref.__file__).parent):
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


@functools.cache
def cache_folder() -> Path:
    """Where compiled kernels are kept: under NUMBA_CACHE_DIR if it is set, else in the user's cache, else in the temporary folder."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    bounds = "-boundscheck" if os.environ.get("NUMBA_BOUNDSCHECK", "0") != "0" else ""  # Numba's own key does not tell checked code from unchecked
    for root in filter(None, (os.environ.get("NUMBA_CACHE_DIR"), home, str(Path(tempfile.gettempdir()) / f"cache-{os.getuid()}"))):
        folder = Path(root) / "temporal-transformer" / (sources_hash() + bounds)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    raise OSError("no folder for compiled kernels can be written: set NUMBA_CACHE_DIR to one")


def nothing_is_compiled() -> bool:
    """Whether the folder is empty: this machine has not seen these sources."""
    return not any(cache_folder().glob("*.nbi"))


class KernelLocator(_CacheLocator):
    """Compiled kernels lie in cache_folder(), whose name already says from which sources."""

    def __init__(self, py_func: Callable[..., Any], py_file: str) -> None:
        self.py_func, self._py_file = py_func, py_file

    def get_cache_path(self) -> str:
        """The folder."""
        return str(cache_folder())

    def get_source_stamp(self) -> str:
        """The same for all kernels of one state of the sources."""
        return sources_hash()

    def get_disambiguator(self) -> str:
        """The module's name, which Numba's file name leaves out."""
        return self.py_func.__module__.rpartition(".")[2]

    @classmethod
    def from_function(cls, py_func: Callable[..., Any], py_file: str) -> "KernelLocator":
        """How Numba makes one."""
        return cls(py_func, py_file)


class KernelCacheImpl(CompileResultCacheImpl):
    """Numba's own, in our folder."""

    _locator_classes: list[type[object]] = [KernelLocator]  # noqa: RUF012


class KernelFiles(IndexDataCacheFile):
    """Numba's own numbers the files of a function's machine code after those that its index names. Two processes that compile it at once, for
    different types, may read the same index: then both write one file, and one of them would later be called for the other. Here a file is named
    after what it holds; what an index loses in such a race is compiled again.
    """

    def save(self, key: Any, data: Any) -> None:
        """Under the key."""
        name = self._data_name(int(hashlib.sha256(repr(key).encode()).hexdigest()[:15], 16))
        self._save_data(name, data)
        self._save_index(self._load_index() | {key: name})


class KernelCache(FunctionCache):
    """Numba's own, with the specification in the key instead of the closure's contents, whose pickles differ from process to process."""

    _impl_class = KernelCacheImpl

    def __init__(self, py_func: Callable[..., Any], variant: str) -> None:
        self.variant = variant
        super().__init__(py_func)
        self._cache_file = KernelFiles(self._cache_path, self._impl.filename_base, self._impl.locator.get_source_stamp())

    def _index_key(self, sig: Any, codegen: Any) -> tuple[Any, ...]:
        return sig, codegen.magic_tuple(), self.variant


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Ctrl-C waits until the end: raised inside one of LLVM's callbacks it is lost, and what is being compiled stays half made."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is None:
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        signal.raise_signal(signal.SIGINT)


def kernel(variant: object = "", **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function when it is first called, for the types it is called with.

    variant: what a function made inside another one is specialised for; its words must tell it from its sisters.
    options: those of numba.njit. Kernels for several threads are made by team.py, except where several parallel loops have to run within one call.
    """

    def compiled(function: Callable[..., Any]) -> Any:
        dispatcher = njit(**FLAGS, **options)(named_apart(function, variant))
        if dispatcher.__class__.__name__ == "CPUDispatcher":  # not under NUMBA_DISABLE_JIT
            dispatcher._cache = KernelCache(function, str(variant))
            dispatcher.compile = interrupts_held()(with_environments(dispatcher))
        return dispatcher

    return compiled


def with_environments(dispatcher: Any) -> Callable[[Any], Any]:
    """dispatcher.compile, after which the kernel's inner kernels have what they need."""
    compile_one = dispatcher.compile

    def compile_and_set(signature: Any) -> Any:
        entry = compile_one(signature)
        for compiled in dispatcher.overloads.values():
            set_environments(compiled)
        return entry

    return compile_and_set


def named_apart(function: Callable[..., Any], variant: object) -> Callable[..., Any]:
    """The function, under a name that tells its variant.

    Symbols are named after functions and a count within the process: sisters compiled by different processes would otherwise meet under one name when
    a third process loads both, and one would be called for the other.
    """
    if variant:
        function.__qualname__ += f"[{hashlib.sha256(f'{function.__module__} {variant}'.encode()).hexdigest()[:12]}]"
    return function


def inner(variant: object = "") -> Callable[[Callable[..., Any]], Any]:
    """A kernel that only kernels call: linked into them, without the wrappers that take Python's objects apart, which take long to compile."""
    return lambda function: njit(**FLAGS, pipeline_class=LinkingCompiler, **WITHOUT_WRAPPERS)(named_apart(function, variant))
