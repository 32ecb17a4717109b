"""The fast core: Numba kernels in files named like those of ttr_ref, over vector values, matrix tiles and half-precision conversions."""
