"""Time2Vec on the GPU; the mathematics is in ttr_ref/time2vec.py.

Phases are formed and reduced in float64 with the oracle's own roundings; only the result is rounded. Backward forms the phases again and sums in
float64, chunk by chunk of tokens (rows.py).

Ladder:
1. A thread owns a feature of a token; in backward, a feature of CHUNK tokens. Measured: not yet, no device.
"""

from ttr_fast.cuda.jit import blocks_for, cuda, inner, kernel
from ttr_fast.cuda.numbers import load, store, times
from ttr_fast.cuda.rows import CHUNK, THREADS, reduced, sine_and_cosine, sum_chunks


@kernel("M[::1], int64[::1], M, float64, float64[::1]", registers=32, threads=THREADS)
def elapsed_times(time, document, origin, unit, tau):
    """One thread for each token."""
    i = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    if i < tau.size:
        tau[i] = float(time[i] - origin) / unit if document[i] != -1 else 0.0


def elapsed(time, document, origin, unit: float, tau) -> None:
    """τ (N,) as ttr_ref/timeline.elapsed: origin in the type of the times, int64 or float64; 0 in padding, whose times are not read."""
    elapsed_times[blocks_for(tau.size, THREADS), THREADS](time, document, time.dtype.type(origin), unit, tau)


@inner
def phase(tau, omega, phi):
    """ω τ + φ, reduced."""
    return reduced(times(tau, omega) + phi)


@kernel("float64[::1], float64[::1], float64[::1], S[:, ::1]", registers=40, threads=THREADS)
def features(tau, omega, phi, y):
    """One thread for each item of y."""
    at, e = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, y.shape[1]
    if at < y.shape[0] * e:
        i, k = at // e, at % e
        if k == 0:
            store(times(omega[0], tau[i]) + phi[0], y, (i, k))
        else:
            store(sine_and_cosine(phase(tau[i], omega[k], phi[k]))[0], y, (i, k))


def time2vec_forward(tau, omega, phi, y) -> None:
    """y (N, E) of any storage; tau (N,), omega (E,), phi (E,) float64."""
    features[blocks_for(y.shape[0] * y.shape[1], THREADS), THREADS](tau, omega, phi, y)


@kernel("S[:, ::1], float64[::1], float64[::1], float64[::1], float64[:, ::1]", registers=56, threads=THREADS)
def phase_chunks(dy, tau, omega, phi, partial):
    """partial (chunks, 2E): the sums of dphase · τ, then of dphase; block (·, c) has chunk c."""
    c, k, e = cuda.blockIdx.y, cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, dy.shape[1]
    if k < e:
        domega, dphi = 0.0, 0.0
        for i in range(c * CHUNK, min(dy.shape[0], c * CHUNK + CHUNK)):
            d = float(load(dy, (i, k)))
            if k > 0:
                d *= sine_and_cosine(phase(tau[i], omega[k], phi[k]))[1]
            domega += d * tau[i]
            dphi += d
        partial[c, k], partial[c, e + k] = domega, dphi


def time2vec_backward(dy, tau, omega, phi, dparams, partial) -> None:
    """dparams (2E,) float64: dω, then dφ; dy (N, E) of any storage. partial (rows.chunks_of(N), 2E) float64 is scratch."""
    if dy.shape[0]:
        phase_chunks[(blocks_for(dy.shape[1], THREADS), partial.shape[0]), THREADS](dy, tau, omega, phi, partial)
    sum_chunks(partial, dparams)
