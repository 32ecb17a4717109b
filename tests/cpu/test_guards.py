"""No kernel of a training step writes, or takes anything from, outside of its arrays; on other CPUs too."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from llvmlite import binding, ir
from numba import types
from numpy import ndarray

from tests.cpu.cpus import ARM
from tests.cpu.model_cases import NO_WEIGHTS_DROPPED, problem_of, small_model, step
from tests.cpu.storages import threads
from tests.ref.bounds import same_bits
from ttr_fast.cpu.jit import kernel
from ttr_fast.cpu.model import CpuModel
from ttr_fast.cpu.simd import F32, I16, I64, Emitter
from ttr_fast.cpu.workspace import Workspace
from ttr_ref.config import ModelConfig
from ttr_ref.float_dtype import FloatDType

ROOT = Path(__file__).parents[2]
MARGIN = 256
"""Bytes in front of and behind each array: four vectors."""


class GuardedWorkspace(Workspace):
    """Each array stands alone between margins of ones, which are NaN in every storage and −1 as integers."""

    def __init__(self) -> None:
        super().__init__()
        self.guarded: list[tuple[str, ndarray, int]] = []

    def array(self, name: str, shape: tuple[int, ...], dtype: np.dtype | type) -> ndarray:
        view = self.views.get(name)
        if view is None or view.shape != shape or view.dtype != np.dtype(dtype):
            size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
            raw = np.full(size + 3 * MARGIN, 0xFF, np.uint8)
            start = MARGIN + -raw.ctypes.data % 64
            self.guarded.append((name, raw, start))
            view = self.views[name] = raw[start : start + size].view(dtype).reshape(shape)
        return view

    def spoiled(self) -> list[str]:
        """The arrays whose margins are no longer what they were."""
        sizes = {name: self.views[name].nbytes for name, _, _ in self.guarded}
        last = {name: (raw, start) for name, raw, start in self.guarded}
        return [n for n, (raw, start) in last.items() if (raw[:start] != 0xFF).any() or (raw[start + sizes[n] :] != 0xFF).any()]


@pytest.mark.parametrize(
    "config", [small_model(FloatDType.F32), small_model(FloatDType.BF16, "exp"), small_model(FloatDType.F16, dropout=NO_WEIGHTS_DROPPED)],
    ids=["f32", "bf16", "f16"],
)  # fmt: skip
def test_a_step_stays_within_its_arrays(config: ModelConfig) -> None:
    """All widths here leave a rest behind whole vectors. The bits are those of a step without margins, so what lies there is not read either."""
    params, batch, key = problem_of(config, 1)
    model = CpuModel(config)
    model.workspace = GuardedWorkspace()
    with threads(1):
        actual = step(params, batch, config, key, model)
        assert model.workspace.spoiled() == []
        assert same_bits(actual, step(params, batch, config, key))


@kernel()
def one_too_far(a: ndarray) -> float:
    return a[a.size]


CHECKED = [
    "test_guards.py::test_an_index_too_far_is_an_error", "test_attention.py::test_equals_the_oracle[none-f32-False]",
    "test_linear.py::test_mixed_storage", "test_rms_norm.py::test_equals_the_oracle[f32]", "test_rope.py::test_equals_the_oracle[f32]",
    "test_time2vec.py::test_equals_the_oracle[f32]", "test_embedding.py::test_equals_the_oracle[f32]",
    "test_cross_entropy.py::test_equals_the_oracle[f32]", "test_dropout.py::test_whole_heads", "test_time_head.py::test_equals_the_oracle[float32]",
]  # fmt: skip


def test_an_index_too_far_is_an_error() -> None:
    """Where bounds are checked; elsewhere it is what the compiler makes of it, so it is not run."""
    if os.environ.get("NUMBA_BOUNDSCHECK") == "1":
        with pytest.raises(IndexError):
            one_too_far(np.zeros(3))


def test_indices_within_bounds() -> None:
    """Plain indexing, in a process that checks it. Pointers of vectors are not seen there: the margins above see those."""
    names = [str(ROOT / "tests" / "cpu" / name) for name in CHECKED]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--tb=short", "-p", "no:cacheprovider", *names]
    environment = os.environ | {"NUMBA_BOUNDSCHECK": "1", "NUMBA_NUM_THREADS": "1", "CI": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert f"{len(CHECKED)} passed" in done.stdout, done.stdout[-3000:] + done.stderr


@pytest.mark.parametrize("cpu, dtype", [("x86-64-v2", "f64"), ("haswell", "bf16")])
def test_attention_on_other_cpus(cpu: str, dtype: str) -> None:
    """Against the oracle, in a process of its own, since an instruction that is not there would end it."""
    if not sys.platform.startswith("linux") or os.uname().machine != "x86_64":
        cpu = "generic"
    environment = os.environ | {"NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": ""}
    code = f"from tests.cpu.test_attention import *; check_one('{dtype}'); print('{cpu} agrees')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == f"{cpu} agrees\n", done.stderr


def test_vectors_become_instructions_on_aarch64() -> None:
    """Conversions, powers, logarithms and fused sums: instructions of its own, no call of a function that would not be there."""
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    module = ir.Module()
    pointer, half = F32.as_pointer(), I16.as_pointer()
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [pointer, half, half, I64]), "all")
    b = ir.IRBuilder(function.append_basic_block())
    e = Emitter(ARM, b, types.float32)
    floats, f16, bf16, _ = function.args
    x = e.fma(e.load(f16, types.int16), e.load(bf16, types.uint16), e.load(floats, types.float32))
    y = e.maximum(e.exp2(x), e.sqrt(e.log2(x)))
    e.store(y, f16, types.int16)
    e.store(y, bf16, types.uint16)
    e.store(e.splat(e.total(y)), floats, types.float32)
    b.ret_void()
    machine = binding.Target.from_triple(ARM.triple).create_target_machine(cpu="generic", opt=2)
    parsed = binding.parse_assembly(str(module))
    parsed.triple = machine.triple
    assembly = machine.emit_assembly(parsed)
    assert all(word in assembly for word in ("fcvtl", "fcvtn", "fmla", "fsqrt"))
    assert "\tbl\t" not in assembly
