"""The model once more, in PyTorch with autograd: as compact as it gets, with PyTorch's own attention, norm, GELU, losses and distributions."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ttr_ref.config import BlockConfig, ModelConfig, TimeConfig
from ttr_ref.next_event import Batch
from ttr_ref.time_bias import ExpBias, LinearBias, LogBias, NoBias, TableBias, TimeBias
from ttr_ref.timeline import Timeline
from ttr_ref.tree import tree_map


def leaves(tree: Any) -> Any:
    """The tree with tensors that ask for a gradient."""
    return tree_map(lambda a: torch.tensor(a, requires_grad=True), tree)


def gradients(tree: Any) -> Any:
    """The gradients as arrays; zeros where the loss does not depend on a leaf."""
    return tree_map(lambda a: (torch.zeros_like(a) if a.grad is None else a.grad).numpy(), tree)


def reads(at_q: Timeline, at_k: Timeline, causal: bool, window: int | None) -> Tensor:
    """(B, T_q, T_k): same document, not padding, not in the future, less than W places ago."""
    document_q, position_q, document_k, position_k = map(torch.tensor, (*at_q[:2], *at_k[:2]))
    ahead = position_q[:, :, None] - position_k[:, None]
    read = (document_q[:, :, None] == document_k[:, None]) & (document_q >= 0)[:, :, None]
    if causal:
        read = read & (ahead >= 0)
    return read if window is None else read & (ahead < window)


def time_bias(delta: Tensor, params: TimeBias, time: TimeConfig) -> Tensor:
    """b of Δ (B, T_q, T_k) for each head."""
    delta = delta[:, None]
    heads = (slice(None), None, None)
    match params:
        case NoBias():
            return torch.zeros_like(delta)
        case LinearBias(a):
            return -F.softplus(a)[heads] * delta / time.unit
        case LogBias(a, rho):
            return -F.softplus(a)[heads] * torch.log1p(delta / torch.exp(rho)[heads])
        case ExpBias(alpha, log_rate):
            return (alpha[:, None, None] * torch.exp(-torch.exp(log_rate)[:, None, None] * delta[..., None])).sum(-1)
        case TableBias(table):
            u = torch.log2(1 + delta[:, 0] / time.shortest).clamp(max=table.shape[1] - 1)
            k = u.floor().long().clamp(max=table.shape[1] - 2)
            return torch.lerp(table[:, k], table[:, k + 1], u - k).transpose(0, 1)
    raise AssertionError(params)


def attention(q: Tensor, k: Tensor, v: Tensor, at_q: Timeline, at_k: Timeline, bias: TimeBias, time: TimeConfig, causal: bool, window: int | None):
    """(O, LSE); a row that reads nothing is let read everything and its output multiplied by zero, since there PyTorch's would be NaN."""
    read = reads(at_q, at_k, causal, window)[:, None]
    some = read.any(-1, keepdim=True)
    delta = torch.where(read[:, 0], torch.tensor(at_q.time)[:, :, None] - torch.tensor(at_k.time)[:, None], 0).double().abs()
    mask = torch.where(read | ~some, 0.0, -torch.inf) + time_bias(delta, bias, time)
    mask = mask.expand(q.shape[0], q.shape[1], *mask.shape[2:])
    o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    shared = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    lse = torch.logsumexp(q @ shared.mT / math.sqrt(q.shape[-1]) + mask, -1)
    return o * some, torch.where(some[..., 0], lse, 0)


def elapsed(at: Timeline, time: TimeConfig) -> Tensor:
    return torch.where(torch.tensor(at.is_token), torch.tensor(at.time) - time.origin, 0).double() / time.unit


def time2vec(at: Timeline, params: Any, time: TimeConfig) -> Tensor:
    phase = elapsed(at, time)[..., None] * params.omega + params.phi
    return torch.cat([phase[..., :1], torch.sin(phase[..., 1:])], -1)


def rope(x: Tensor, at: Timeline, omega: Tensor, config: BlockConfig) -> Tensor:
    """Each pair as a complex number, turned by multiplication."""
    theta = config.rope_base ** (-2 * torch.arange(config.head_dim // 2 - len(omega), dtype=torch.float64) / config.head_dim)
    angle = torch.cat([torch.tensor(at.position)[..., None] * theta, elapsed(at, config.time)[..., None] * omega], -1)[:, None]
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * torch.polar(torch.ones_like(angle), angle)
    return torch.view_as_real(turned).flatten(-2)


def geglu(x: Tensor, params: Any) -> Tensor:
    linear, gate = (x @ params.w_in).chunk(2, -1)
    return (linear * F.gelu(gate, approximate="tanh")) @ params.w_out


def rms_norm(x: Tensor, weight: Tensor, config: BlockConfig) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, config.norm_eps)


def block(x: Tensor, params: Any, at: Timeline, config: BlockConfig) -> Tensor:
    u = x if params.time2vec is None else x + time2vec(at, params.time2vec, config.time)
    own, d = params.attention, config.head_dim
    qkv = rms_norm(u, params.norm_attention, config) @ own.w_qkv
    q, k, v = (part.unflatten(-1, (-1, d)).transpose(1, 2) for part in qkv.split([config.heads * d, config.groups * d, config.groups * d], -1))
    q, k = (rope(part, at, own.rope_omega, config) for part in (q, k))
    o, _ = attention(q, k, v, at, at, own.time_bias, config.time, config.causal, config.window)
    h = x + o.transpose(1, 2).flatten(-2) @ own.w_out
    return h + geglu(rms_norm(h, params.norm_feed_forward, config), params.feed_forward)


def log_normal_mixture(u: Tensor, gap: Tensor, params: Any, resolution: float) -> Tensor:
    """ln p of each gap."""
    logit, mu, s = (u @ params.w_mixture + params.b_mixture).chunk(3, -1)
    parts = torch.distributions.LogNormal(mu, torch.exp(s) + resolution * torch.exp(-mu))
    return torch.distributions.MixtureSameFamily(torch.distributions.Categorical(logits=logit), parts).log_prob(gap.clamp(min=resolution / 2))


def loss(params: Any, batch: Batch, config: ModelConfig, z_loss: float, time_weight: float) -> Tensor:
    """The mean over targets and orders of −ln p(token) + time_weight · (−ln p(gap)) + z_loss · LSE²."""
    at, target = batch.at, torch.tensor(batch.is_target)
    x = params.embedding[torch.tensor(batch.tokens)] * torch.tensor(at.is_token)[..., None] * math.sqrt(config.block.embed_dim)
    for layer in params.blocks:
        x = block(x, layer, at, config.block)
    z = rms_norm(x, params.norm_final, config.block)
    w_vocab = params.embedding.T if params.w_vocab is None else params.w_vocab
    tokens, gap = torch.tensor(batch.next_tokens)[target], torch.tensor(batch.next_times - at.time)[target].double()
    orders, total = config.time_head.orders if config.time_head else ("token_then_time",), 0.0
    for order in orders:
        token_state = time_state = z[target]
        head = params.time_head
        if head is not None and order == "time_then_token":
            features = time2vec(Timeline(at.document, at.position, batch.next_times), head.next_time.time2vec, config.block.time)
            y = z + geglu(rms_norm(z + features, head.next_time.norm, config.block), head.next_time.feed_forward)
            token_state = y[target]
        elif head is not None:
            time_state = z[target] + params.embedding[tokens]
        logits = token_state @ w_vocab
        total = total + F.cross_entropy(logits, tokens) + z_loss * torch.logsumexp(logits, -1).square().mean()
        if head is not None:
            total = total - time_weight * log_normal_mixture(time_state, gap, head.mixture, config.block.time.resolution).mean()
    return total / len(orders)
