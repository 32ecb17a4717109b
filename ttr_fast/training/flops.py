"""Model FLOPs: what a step needs by the definition of the model, however it is computed.

A product with a matrix costs 2 operations for each entry and row going forward and 4 going back, so

    6 · (entries of the blocks' matrices) · tokens + 6 · (entries of vocabulary and mixture) · targets · orders
      + 12 · E · L · (pairs of a query and a key that it may read)

since each pair takes 2 products of E numbers forward and 4 back. What is computed again (gradient checkpointing, scores in backward) does not count,
nor what padding costs (Chowdhery et al. 2022, arXiv:2204.02311, appendix B, whose formula takes all pairs of a row).
"""

from ttr_ref.config import ModelConfig
from ttr_ref.model import ModelParams
from ttr_ref.next_event import Batch, orders_of
from ttr_ref.parameters import is_matrix
from ttr_ref.tree import named_tree_map


def model_flops(params: ModelParams, batch: Batch, config: ModelConfig) -> float:
    """Floating-point operations of one training step."""
    entries = dict[str, int]()
    named_tree_map(lambda name, a: entries.update({name: a.size} if is_matrix(name) else {}), params)
    at_ends = {"embedding", "w_vocab"}
    for_targets = config.vocab_size * config.block.embed_dim + entries.get("time_head.mixture.w_mixture", 0)
    for_tokens = sum(size for name, size in entries.items() if name not in at_ends) - entries.get("time_head.mixture.w_mixture", 0)
    seen = batch.at.position[batch.at.is_token] + 1  # the keys before each query, itself included: documents start at position 0
    pairs = float((seen if config.block.window is None else seen.clip(max=config.block.window)).sum())
    targets = float(batch.is_target.sum()) * len(orders_of(config))
    return 6.0 * (for_tokens * seen.size + for_targets * targets) + 12.0 * config.block.embed_dim * config.layers * pairs
