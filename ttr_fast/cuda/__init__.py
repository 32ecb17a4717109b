"""numba.cuda kernels with the names of `ttr_ref`; without a GPU they run in simulator.py and are compiled to machine code (tests/cuda)."""
