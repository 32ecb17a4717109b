"""PyTorch's side of `ttr bench decode`."""

import importlib
from typing import Any

import numpy as np
from numpy import ndarray

from ttr_fast.bench.case import Prepared, from_tensor
from ttr_fast.bench.decode import Case, events
from ttr_ref.config import ModelConfig
from ttr_ref.model import ModelParams, model_init
from ttr_ref.tree import named_tree_map


class TorchDecoder:
    """Weights as torch.nn.Linear has them, buffers of W keys and values for every block."""

    def __init__(self, torch: Any, params: ModelParams, config: ModelConfig, batch: int, device: str) -> None:
        self.torch, self.f, self.config, self.seen = torch, torch.nn.functional, config, 0
        block = config.block
        self.params: Any = named_tree_map(
            lambda name, a: torch.from_numpy(np.ascontiguousarray(a.T if name.rpartition(".")[2].startswith("w_") else a)).to(device), params
        )
        times = [layer.time2vec for layer in self.params.blocks]
        self.omega, self.phi = torch.stack([t.omega for t in times]), torch.stack([t.phi for t in times])
        self.theta = torch.from_numpy(block.rope_base ** (-2 * np.arange(block.head_dim // 2) / block.head_dim)).to(device)
        shape = (config.layers, batch, block.heads, config.block.window, block.head_dim)
        self.k, self.v = torch.zeros(shape, device=device), torch.zeros(shape, device=device)

    def rms_norm(self, x: Any, weight: Any) -> Any:
        return self.f.rms_norm(x, weight.shape, weight, self.config.block.norm_eps)

    def turned(self, x: Any, cos: Any, sin: Any) -> Any:
        """Rotary embedding."""
        even, odd = x[..., 0::2], x[..., 1::2]
        return self.torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)

    def step(self, tokens: Any, times: Any) -> Any:
        """Logits (B, V) of one more token in every row."""
        block, window = self.config.block, self.k.shape[3]
        slot, filled = self.seen % window, min(self.seen + 1, window)
        angle = self.seen * self.theta
        cos, sin = self.torch.cos(angle).float(), self.torch.sin(angle).float()
        phase = ((times - block.time.origin).double() / block.time.unit)[:, None, None] * self.omega + self.phi  # of all blocks at once
        features = self.torch.cat([phase[..., :1], self.torch.sin(phase[..., 1:])], -1).float()
        x = self.params.embedding[tokens] * block.embed_dim**0.5
        for layer, own in enumerate(self.params.blocks):
            normed = self.rms_norm(x + features[:, layer], own.norm_attention)
            q, k, v = self.f.linear(normed, own.attention.w_qkv).view(x.shape[0], 3, block.heads, -1).unbind(1)
            self.k[layer, :, :, slot], self.v[layer, :, :, slot] = self.turned(k, cos, sin), v
            q = self.turned(q, cos, sin)[:, :, None]
            o = self.f.scaled_dot_product_attention(q, self.k[layer, :, :, :filled], self.v[layer, :, :, :filled])
            h = x + self.f.linear(o.flatten(1), own.attention.w_out)
            linear, gate = self.f.linear(self.rms_norm(h, own.norm_feed_forward), own.feed_forward.w_in).chunk(2, -1)
            x = h + self.f.linear(linear * self.f.gelu(gate, approximate="tanh"), own.feed_forward.w_out)
        self.seen += 1
        return self.f.linear(self.rms_norm(x, self.params.norm_final), self.params.embedding)


def prepared(case: Case, device: str) -> Prepared:
    """`position` tokens are decoded beforehand."""
    torch: Any = importlib.import_module("torch")  # it need not be installed
    torch.set_num_threads(case.threads)
    decoder = TorchDecoder(torch, model_init(case.config, case.seed), case.config, case.batch, device)
    coming = events(case)

    def call() -> Any:
        tokens, times = next(coming)
        with torch.inference_mode():
            return decoder.step(torch.from_numpy(tokens).to(device), torch.from_numpy(times).to(device))

    def arrays(logits: Any) -> dict[str, ndarray]:
        return {"logits": from_tensor(torch, logits)}

    for _ in range(case.position):
        call()
    return Prepared(call, arrays)
