"""Inner kernels become parts of the kernels that call them, and no machine code of their own.

Numba optimizes whatever it compiles and makes machine code of it, though only compiled code may call it, and optimizes it again within each caller.
With this compiler the first call of `ttr bench step --cold --against none` took 21.3 s on a Zen 4, and 27.5 s before. Callers are optimized once
everything is linked; there is no fast-math flag, so no bit depends on that.
"""

from typing import Any

from llvmlite import binding
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.compiler_lock import require_global_compiler_lock


class NoMachineCode:
    """In place of Numba's code generator, of which Numba asks one thing once a function is compiled."""

    def set_env(self, name: str, environment: Any) -> None:
        """Nothing: Python's objects that the function needs are written into the machine code of its callers (jit.kernel)."""


class LinkedLibrary(JITCodeLibrary):
    """A function and what it calls, as LLVM's intermediate code."""

    @property
    def codegen(self) -> NoMachineCode:
        """For Numba's get_executable."""
        return NoMachineCode()

    def _optimize_functions(self, ll_module: binding.ModuleRef) -> None:
        """Numba would run passes over each function that is added; callers' passes will do."""
        ll_module.data_layout = self._codegen._data_layout

    def finalize(self) -> None:
        """Numba would optimize the module and make machine code of it."""
        require_global_compiler_lock()
        self._raise_if_finalized()
        for library in dict.fromkeys(self._linking_libraries):
            self._final_module.link_in(library._get_module_for_linking(), preserve=True)
        self._final_module.verify()
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        """None: 0."""
        self._ensure_finalized()
        return 0


class LinkingCompiler(Compiler):
    """Numba's compiler with such a library: `njit(pipeline_class=LinkingCompiler)`."""

    def compile_extra(self, func: Any) -> Any:
        """Numba takes the library that is there."""
        self.state.library = LinkedLibrary(self.state.targetctx.codegen(), func.__qualname__)
        return super().compile_extra(func)


def set_environments(compiled: Any) -> None:
    """Write the Python objects that a caller's linked parts need, as `print` does, into its machine code; Numba does so with what it loads from disk.

    compiled: Numba's CompileResult.
    """
    for environment in compiled._find_referenced_environments():
        compiled.library.codegen.set_env(environment.env_name, environment)
