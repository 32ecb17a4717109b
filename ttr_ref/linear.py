"""A linear map without bias, y = x W, W laid out (in, out)."""

from jaxtyping import Inexact
from numpy import ndarray


def linear_backward(
    dy: Inexact[ndarray, "*rows Out"], x: Inexact[ndarray, "*rows In"], w: Inexact[ndarray, "In Out"]
) -> tuple[Inexact[ndarray, "*rows In"], Inexact[ndarray, "In Out"]]:
    """(dx, dW) of y = x @ w.

    y_o = Σ_i x_i W_io: x_i reaches every y_o with weight W_io, W_io reaches y_o of every row with weight x_i.
    """
    dx = dy @ w.T
    dw = x.reshape(-1, w.shape[0]).T @ dy.reshape(-1, w.shape[1])
    return dx, dw
