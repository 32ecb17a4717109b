"""PyTorch's side of `ttr bench step`: the model with autograd."""

import importlib
from typing import Any

import numpy as np
from numpy import ndarray

from ttr_fast.bench.case import Prepared, from_tensor
from ttr_fast.bench.step import TRAIN, Case, inputs
from ttr_fast.bench.torch_attention import bias_mask
from ttr_ref.config import ModelConfig
from ttr_ref.gradient_checkpointing import blocks_per_checkpoint
from ttr_ref.model import learning_rate_shares, model_init
from ttr_ref.next_event import Batch
from ttr_ref.parameters import is_frequency, is_matrix
from ttr_ref.tree import leaves_of, named_tree_map


class TorchModel:
    """The loss of a batch as a function of a tree of tensors. What depends on positions alone is made once, what depends on times in every step."""

    def __init__(self, torch: Any, config: ModelConfig, batch: Batch, biased: bool, every: int, device: str) -> None:
        """every: blocks between inputs that are kept, 0 for keeping everything."""
        self.torch, self.f, self.config, self.biased, self.every = torch, torch.nn.functional, config, biased, every
        block = config.block
        self.tokens, self.targets = torch.from_numpy(batch.tokens).to(device), torch.from_numpy(batch.next_tokens).flatten().to(device)
        self.times = torch.from_numpy(batch.at.time).to(device)
        angle = np.arange(batch.tokens.shape[1])[:, None] * block.rope_base ** (-2 * np.arange(block.head_dim // 2) / block.head_dim)
        self.cos, self.sin = (torch.from_numpy(a).float().to(device) for a in (np.cos(angle), np.sin(angle)))

    def rms_norm(self, x: Any, weight: Any) -> Any:
        return self.f.rms_norm(x, weight.shape, weight, self.config.block.norm_eps)

    def time2vec(self, tau: Any, params: Any) -> Any:
        """The phase in float64, as it has to be."""
        phase = tau * params.omega + params.phi
        return self.torch.cat([phase[..., :1], self.torch.sin(phase[..., 1:])], -1).float()

    def turned(self, x: Any) -> Any:
        """Rotary embedding by position."""
        even, odd, cos, sin = x[..., 0::2], x[..., 1::2], self.cos.to(x.dtype), self.sin.to(x.dtype)
        return self.torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)

    def attention(self, x: Any, mask: Any, params: Any) -> Any:
        heads = [part.unflatten(-1, (self.config.block.heads, -1)).transpose(1, 2) for part in (x @ params.w_qkv).chunk(3, -1)]
        q, k, v = self.turned(heads[0]), self.turned(heads[1]), heads[2]
        if mask is None:
            o = self.f.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            o = self.f.scaled_dot_product_attention(q, k, v, attn_mask=mask(params.time_bias))
        return o.transpose(1, 2).flatten(-2) @ params.w_out

    def block(self, x: Any, tau: Any, mask: Any, params: Any) -> Any:
        h = x + self.attention(self.rms_norm(x + self.time2vec(tau, params.time2vec), params.norm_attention), mask, params.attention)
        linear, gate = (self.rms_norm(h, params.norm_feed_forward) @ params.feed_forward.w_in).chunk(2, -1)
        return h + (linear * self.f.gelu(gate, approximate="tanh")) @ params.feed_forward.w_out

    def blocks(self, x: Any, tau: Any, mask: Any, several: tuple[Any, ...]) -> Any:
        for params in several:
            x = self.block(x, tau, mask, params)
        return x

    def loss(self, params: Any) -> Any:
        """The mean over all places."""
        time, like = self.config.block.time, params.blocks[0].attention.time_bias
        tau = ((self.times - time.origin).double() / time.unit)[..., None]
        mask = bias_mask(self.torch, self.times, time, self.torch.float32, like) if self.biased else None
        x = self.f.embedding(self.tokens, params.embedding) * self.config.block.embed_dim**0.5
        if self.every == 0:
            x = self.blocks(x, tau, mask, params.blocks)
        else:
            for start in range(0, len(params.blocks), self.every):
                segment = params.blocks[start : start + self.every]
                x = self.torch.utils.checkpoint.checkpoint(self.blocks, x, tau, mask, segment, use_reentrant=False)
        logits = self.rms_norm(x, params.norm_final) @ params.embedding.T
        return self.f.cross_entropy(logits.flatten(0, 1).float(), self.targets)


def fused_adamw(torch: Any, tensors: dict[str, Any], frequency_share: float) -> Any:
    """As ours: decay for matrices alone, frequencies at their share of the rate."""
    leaves = {name: tensor for name, tensor in tensors.items() if tensor.numel()}
    groups = [
        {"params": [t for name, t in leaves.items() if is_matrix(name)]},
        {"params": [t for name, t in leaves.items() if not is_matrix(name) and not is_frequency(name)], "weight_decay": 0.0},
        {"params": [t for name, t in leaves.items() if is_frequency(name)], "weight_decay": 0.0, "lr": TRAIN.learning_rate * frequency_share},
    ]
    return torch.optim.AdamW(
        groups, lr=TRAIN.learning_rate, betas=(TRAIN.beta1, TRAIN.beta2), eps=TRAIN.adam_eps, weight_decay=TRAIN.weight_decay, fused=True
    )


def prepared(case: Case, biased: bool, compiled: bool, device: str) -> Prepared:
    """Steps on one and the same batch."""
    torch: Any = importlib.import_module("torch")  # it need not be installed
    importlib.import_module("torch.utils.checkpoint")
    torch.set_num_threads(case.threads)
    config, batch = case.config, inputs(case)
    weights = model_init(config, case.seed)
    leaves: dict[str, Any] = {}

    def tensor(name: str, a: ndarray) -> Any:
        leaves[name] = torch.from_numpy(a).to(device).requires_grad_(True)
        return leaves[name]

    tensors = named_tree_map(tensor, weights)
    model = TorchModel(torch, config, batch, biased and case.bias != "none", blocks_per_checkpoint(case.checkpointing), device)
    optimizer = fused_adamw(torch, leaves, min(leaves_of(learning_rate_shares(weights, config.block))))
    trained = [tensor for group in optimizer.param_groups for tensor in group["params"]]
    loss_of = torch.compile(model.loss, dynamic=False) if compiled else model.loss

    def call() -> tuple[Any, Any]:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=case.dtype == "bf16"):
            loss = loss_of(tensors)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, TRAIN.clip_norm)
        optimizer.step()
        return loss, norm

    def arrays(result: tuple[Any, Any]) -> dict[str, ndarray]:
        """Gradients as they were clipped."""
        loss, norm = (from_tensor(torch, a) for a in result)
        grads = {f"d{name}": np.zeros(t.shape) if t.grad is None else from_tensor(torch, t.grad) for name, t in leaves.items()}
        return {"loss": loss, "norm": norm} | grads

    return Prepared(call, arrays)
