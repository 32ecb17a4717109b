"""Time2Vec on the GPU; the mathematics is in ttr_ref/time2vec.py.

Phases are formed and reduced in float64 with the oracle's own roundings; only the result is rounded. Backward forms the phases again and sums in
float64, chunk by chunk of tokens (rows.py).

Ladder:
1. A thread owns a feature of a token; in backward, a feature of CHUNK tokens. Measured: not yet, no device.
"""

from ttr_fast.cuda.jit import blocks_for, cuda, inner, kernel
from ttr_fast.cuda.numbers import load, number, store, times
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
    return reduced(times(tau, omega) + float(phi))


@kernel("float64[::1], float64[::1], C[::1], S[:, ::1], boolean, S[:, ::1]", registers=40, threads=THREADS)
def features(tau, omega, phi, x, with_x, y):
    """One thread for each item of y."""
    at, e = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, y.shape[1]
    if at < y.shape[0] * e:
        i, k = at // e, at % e
        v = times(omega[0], tau[i]) + float(phi[0]) if k == 0 else sine_and_cosine(phase(tau[i], omega[k], phi[k]))[0]
        store(load(x, (i, k)) + number(x, v) if with_x else number(x, v), y, (i, k))


def time2vec_forward(tau, omega, phi, x, y) -> None:
    """y (N, E) of any storage = x + the features, or these alone where x is None; tau (N,), omega (E,) float64; phi (E,) in the type of arithmetic.

    Features are rounded to the type of arithmetic before x is added, as ttr_ref/transformer_block.attention_input does.
    """
    features[blocks_for(y.shape[0] * y.shape[1], THREADS), THREADS](tau, omega, phi, y if x is None else x, x is not None, y)


@kernel("S[:, ::1], float64[::1], float64[::1], C[::1], float64[:, :, ::1]", registers=56, threads=THREADS)
def phase_chunks(dy, tau, omega, phi, partial):
    """partial (2, chunks, E): the sums of dphase · τ and of dphase; block (·, c) has chunk c."""
    c, k, e = cuda.blockIdx.y, cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, dy.shape[1]
    if k < e:
        domega, dphi = 0.0, 0.0
        for i in range(c * CHUNK, min(dy.shape[0], c * CHUNK + CHUNK)):
            d = float(load(dy, (i, k)))
            if k > 0:
                d *= sine_and_cosine(phase(tau[i], omega[k], phi[k]))[1]
            domega += d * tau[i]
            dphi += d
        partial[0, c, k], partial[1, c, k] = domega, dphi


def time2vec_backward(dy, tau, omega, phi, domega, dphi, partial) -> None:
    """domega (E,) float64, dphi (E,) like phi; dy (N, E) of any storage. partial (2, rows.chunks_of(N), E) float64 is scratch."""
    if dy.shape[0]:
        phase_chunks[(blocks_for(dy.shape[1], THREADS), partial.shape[1]), THREADS](dy, tau, omega, phi, partial)
    sum_chunks(partial[0], domega)
    sum_chunks(partial[1], dphi)
