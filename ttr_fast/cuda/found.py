"""What this machine has for the GPU, and what keeps kernels from running on it. Looks without importing numba.cuda, and changes nothing."""

import ctypes
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM", "0") == "1"
"""Whether kernels run in simulator.py, on the host; read once."""
OLDEST_DEVICE = (8, 0)
"""A100; kernels are tested as machine code for nothing older."""
OLDEST_DRIVER = (13, 0)
"""The CUDA version of the compiler's libraries, which a driver has to know."""
LANES = 32
"""Threads of a warp, on every device."""
NO_DEVICE = 100
"""What the driver answers when it finds none."""
INSTALL = "pip install 'temporal-transformer[cuda]'"
LIBRARIES = {"nvidia-nvvm": "nvvm", "nvidia-cuda-nvrtc": "nvrtc"}
"""Packages of the compiler's libraries, and the names of these."""


class Device(NamedTuple):
    """A GPU."""

    name: str
    capability: tuple[int, int]
    memory: int
    """Bytes."""


class Driver(NamedTuple):
    """NVIDIA's driver: the newest CUDA that it knows, and the devices that it shows."""

    cuda: tuple[int, int]
    devices: tuple[Device, ...]


class Obstacle(NamedTuple):
    """Why kernels cannot run here, as part of a sentence, and what mends it."""

    what: str
    mend: str


def package_version(name: str) -> str | None:
    """Of an installed package."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def library_of_toolkit(name: str) -> Path | None:
    """A library of a CUDA toolkit that is installed beside Python, by the folders that numba.cuda searches."""
    for root in filter(None, (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda")):
        for folder in ("nvvm/lib64", "lib64"):
            for path in sorted(Path(root, folder).glob(f"lib{name}.so*")):
                return path
    return None


def compiler_library(package: str) -> str | None:
    """Where one of LIBRARIES comes from: the version of its package, or a path."""
    path = library_of_toolkit(LIBRARIES[package])
    return package_version(package) or (None if path is None else str(path))


def driver() -> Driver | Obstacle:
    """What the driver shows, or why it does not."""
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        api = ctypes.CDLL(library)
    except OSError:
        return Obstacle(
            f"there is no NVIDIA driver here ({library} cannot be loaded)",
            "on a machine with an NVIDIA GPU, install driver 580 or newer (Ubuntu: sudo ubuntu-drivers install; else https://www.nvidia.com/drivers)",
        )
    number = ctypes.c_int()
    if (answer := api.cuInit(0)) not in (0, NO_DEVICE):
        return Obstacle(f"the NVIDIA driver does not start (cuInit answers {answer})", "see what nvidia-smi says; after an update, reboot")
    api.cuDriverGetVersion(ctypes.byref(number))
    cuda, count = (number.value // 1000, number.value % 1000 // 10), ctypes.c_int()
    if answer == 0:
        api.cuDeviceGetCount(ctypes.byref(count))
    return Driver(cuda, tuple(device(api, index) for index in range(count.value)))


def device(api: ctypes.CDLL, index: int) -> Device:
    """What the driver says of one."""
    name, handle, memory = ctypes.create_string_buffer(100), ctypes.c_int(), ctypes.c_size_t()
    api.cuDeviceGet(ctypes.byref(handle), index)
    api.cuDeviceGetName(name, len(name), handle)
    api.cuDeviceTotalMem_v2(ctypes.byref(memory), handle)
    major, minor = ctypes.c_int(), ctypes.c_int()
    for value, attribute in ((major, 75), (minor, 76)):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
        api.cuDeviceGetAttribute(ctypes.byref(value), attribute, handle)
    return Device(name.value.decode(), (major.value, minor.value), memory.value)


def device_obstacle(shown: Driver | Obstacle) -> Obstacle | None:
    """What is wrong with the driver or the first device."""
    if isinstance(shown, Obstacle):
        return shown
    if not shown.devices:
        return Obstacle("the NVIDIA driver shows no GPU", "see what nvidia-smi says, and whether CUDA_VISIBLE_DEVICES hides it")
    first = shown.devices[0]
    if first.capability < OLDEST_DEVICE:
        had, needed = (".".join(map(str, c)) for c in (first.capability, OLDEST_DEVICE))
        return Obstacle(f"the GPU is too old: {first.name} has compute capability {had}, {needed} is needed", "use an A100 or anything newer")
    if shown.cuda < OLDEST_DRIVER:
        had, needed = (".".join(map(str, c)) for c in (shown.cuda, OLDEST_DRIVER))
        return Obstacle(f"the NVIDIA driver is too old: it knows CUDA {had}, {needed} is needed", "install driver 580 or newer")
    return None


def compiler_obstacle() -> Obstacle | None:
    """What is missing of the compiler."""
    for package in ("numba-cuda", *LIBRARIES):
        if (package_version(package) if package == "numba-cuda" else compiler_library(package)) is None:
            return Obstacle(f"{package} is not installed", INSTALL)
    return None


def simulator_obstacle() -> Obstacle | None:
    """What is missing of the simulator."""
    if package_version("greenlet") is None:
        return Obstacle("greenlet, which the simulator of NUMBA_ENABLE_CUDASIM=1 needs, is not installed", "pip install greenlet")
    return None


def obstacle() -> Obstacle | None:
    """The first thing that keeps kernels from running here, on a device or where NUMBA_ENABLE_CUDASIM=1 is set in the simulator; None where nothing
    does.
    """
    return simulator_obstacle() if SIMULATED else device_obstacle(driver()) or compiler_obstacle()
