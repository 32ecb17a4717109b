"""One table of twins: for every forward and backward of the oracle, what does it on the CPU, and the tests that compare them."""

from typing import NamedTuple


class Twin(NamedTuple):
    """Functions of ttr_fast.cpu, `module.name` each, and the file of tests/cpu that holds them against the oracle."""

    fast: tuple[str, ...]
    tested_in: str


def same_name(module: str, *names: str) -> dict[str, Twin]:
    """Twins that are called like the oracle's functions."""
    return {f"{module}.{name}": Twin((f"{module}.{name}",), f"test_{module}.py") for name in names}


MODEL, ATTENTION, GEGLU = "test_model.py", "test_attention.py", "test_feed_forward_geglu.py"

TWINS: dict[str, Twin] = {
    **same_name("attention", "attention_forward", "attention_backward"),
    **same_name("cross_entropy", "cross_entropy_forward", "cross_entropy_backward"),
    **same_name("dropout", "dropout_forward", "dropout_backward"),
    **same_name("embedding", "embedding_forward", "embedding_backward"),
    **same_name("rms_norm", "rms_norm_forward", "rms_norm_backward"),
    **same_name("rope", "rope_forward", "rope_backward"),
    **same_name("time2vec", "time2vec_forward", "time2vec_backward"),
    **same_name("time_head", "time_head_forward", "time_head_backward"),
    # one product, three operands
    "linear.linear_backward": Twin(("linear.linear_backward_input", "linear.linear_backward_weight"), "test_linear.py"),
    # fused into what stands beside them
    "blocked_attention.blocked_attention_forward": Twin(("attention.attend",), ATTENTION),
    "blocked_attention.blocked_attention_backward": Twin(("attention.attend_backward",), ATTENTION),
    "time_bias.time_bias_forward": Twin(("time_bias.emit_bias", "time_bias.bias_table"), ATTENTION),
    "time_bias.time_bias_backward": Twin(("time_bias.add_bias_sums", "time_bias.bias_gradient"), ATTENTION),
    "dropout.head_dropout_forward": Twin(("dropout.head_dropout_factors",), "test_dropout.py"),
    "dropout.head_dropout_backward": Twin(("multi_head_attention.split_heads",), MODEL),
    "feed_forward_geglu.gelu_forward": Twin(("feed_forward_geglu.geglu_forward",), GEGLU),
    "feed_forward_geglu.gelu_backward": Twin(("feed_forward_geglu.geglu_backward",), GEGLU),
    "feed_forward_geglu.feed_forward_geglu_forward": Twin(("transformer_block.feed_forward",), MODEL),
    "feed_forward_geglu.feed_forward_geglu_backward": Twin(("transformer_block.feed_forward_backward",), MODEL),
    # made of kernels, and so tested with the whole
    "multi_head_attention.multi_head_attention_forward": Twin(("multi_head_attention.multi_head_attention_forward",), MODEL),
    "multi_head_attention.multi_head_attention_backward": Twin(("multi_head_attention.multi_head_attention_backward",), MODEL),
    "transformer_block.transformer_block_forward": Twin(("transformer_block.transformer_block_forward",), MODEL),
    "transformer_block.transformer_block_backward": Twin(("transformer_block.transformer_block_backward",), MODEL),
    "next_event.next_event_forward": Twin(("next_event.NextEvents.all_orders",), MODEL),
    "next_event.next_event_backward": Twin(("next_event.NextEvents.all_orders",), MODEL),
    "next_event.next_time_forward": Twin(("next_event.NextEvents.with_next_time",), MODEL),
    "next_event.next_time_backward": Twin(("next_event.NextEvents.with_next_time_backward",), MODEL),
    "gradient_checkpointing.chain_forward": Twin(("model.CpuModel.trunk",), MODEL),
    "gradient_checkpointing.chain_backward": Twin(("model.CpuModel.trunk_backward",), MODEL),
    "model.model_forward": Twin(("model.CpuModel.trunk",), MODEL),
    "model.model_backward": Twin(("model.CpuModel.trunk_backward",), MODEL),
    "model.loss_forward": Twin(("model.CpuModel.nats",), MODEL),
    "model.loss_backward": Twin(("model.CpuModel.loss_and_gradients",), MODEL),
}
