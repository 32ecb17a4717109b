"""Time2Vec on the CPU; the mathematics is in ttr_ref/time2vec.py.

Phases are formed and reduced in float64 with the oracle's own roundings, and so are sine and cosine (vectors of eight); only the result is rounded.
Backward forms the phases again. Its sums over tokens run in float64, chunk by chunk of tokens (rows.py).
"""

import numpy as np

from ttr_fast.cpu import rows, simd
from ttr_fast.cpu.jit import inner, kernel
from ttr_fast.cpu.rows import CHUNK
from ttr_fast.cpu.team import share, team


@kernel()
def elapsed(time, document, origin, unit, tau):
    """τ (N,) as ttr_ref/timeline.elapsed: origin in the type of the times, int64 or float64; 0 in padding, whose times are not read."""
    for i in range(time.size):
        tau[i] = np.float64(time[i] - origin) / unit if document[i] != -1 else 0.0


@inner()
def phases(tau, omega, phi, k):
    """ω τ + φ of the features k, k + 1, …, reduced; the straight line's is 0, whose cosine is 1."""
    count = omega.size - k
    x = simd.add(simd.mul(simd.splat(tau), rows.load_part(omega, k, count)), rows.load_wide(phi, k, count))
    x = rows.phase(x)
    return simd.sub(x, rows.only_lane(x, -k))


@inner()
def row_features(tau, omega, phi, y, i):
    """Row i, from its own τ."""
    e = omega.size
    for k in range(0, e, 8):
        line = rows.only_lane(simd.splat(omega[0] * tau + phi[0]), -k)
        rows.store_part(simd.add(rows.sine(phases(tau, omega, phi, k)), line), y, i * e + k, e - k)


@team()
def time2vec_forward(worker, workers, tau, omega, phi, y):
    """y (N, E) of any storage; tau (N,), omega (E,) float64; phi (E,) float64 or float32."""
    begin, end = share(worker, workers, y.shape[0])
    for i in range(begin, end):
        row_features(tau[i], omega, phi, y, i)


@team()
def phase_sums(worker, workers, dy, tau, omega, phi, partial):
    """partial (chunks, 2E): the sums of dphase · τ, then of dphase; a vector of features stays in registers over the tokens of a chunk."""
    n, e = dy.shape
    begin, end = share(worker, workers, partial.shape[0])
    for c in range(begin, end):
        for k in range(0, e, 8):
            domega, dphi = simd.splat(0.0), simd.splat(0.0)
            for i in range(c * CHUNK, min(n, c * CHUNK + CHUNK)):
                d = simd.mul(rows.load_wide(dy, i * e + k, e - k), rows.cosine(phases(tau[i], omega, phi, k)))
                domega, dphi = simd.fma(d, simd.splat(tau[i]), domega), simd.add(dphi, d)
            rows.store_part(domega, partial, 2 * c * e + k, e - k)
            rows.store_part(dphi, partial, 2 * c * e + e + k, e - k)


def time2vec_backward(dy, tau, omega, phi, dparams, partial) -> None:
    """dparams (2, E) float64: dω, then dφ; dy (N, E) of any storage. partial (rows.chunks_of(N), 2E) float64 is scratch."""
    phase_sums(dy, tau, omega, phi, partial)
    rows.sum_chunks(partial, dparams)
