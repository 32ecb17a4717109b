"""One table of twins: for every forward and backward of the oracle that has a kernel on the GPU, what does it, and the tests that compare them."""

from tests.cpu.twins import Twin, same_name

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
    "blocked_attention.blocked_attention_forward": Twin(("attention.attention_forward",), "test_attention.py"),
    "blocked_attention.blocked_attention_backward": Twin(("attention.attention_backward",), "test_attention.py"),
    "time_bias.time_bias_forward": Twin(("time_bias.bias_of", "time_bias.bias_table"), "test_attention.py"),
    "time_bias.time_bias_backward": Twin(("time_bias.add_bias_sums", "time_bias.add_to_knots", "time_bias.bias_gradient"), "test_attention.py"),
    "dropout.head_dropout_forward": Twin(("dropout.head_dropout_factors",), "test_dropout.py"),
    "feed_forward_geglu.gelu_forward": Twin(("feed_forward_geglu.geglu_forward",), "test_feed_forward_geglu.py"),
    "feed_forward_geglu.gelu_backward": Twin(("feed_forward_geglu.geglu_backward",), "test_feed_forward_geglu.py"),
    "dropout.head_dropout_backward": Twin(("multi_head_attention.split_heads",), "test_transformer_block.py"),
    # made of kernels, and so tested with the whole block
    "feed_forward_geglu.feed_forward_geglu_forward": Twin(("transformer_block.feed_forward",), "test_transformer_block.py"),
    "feed_forward_geglu.feed_forward_geglu_backward": Twin(("transformer_block.feed_forward_backward",), "test_transformer_block.py"),
    "multi_head_attention.multi_head_attention_forward": Twin(("multi_head_attention.multi_head_attention_forward",), "test_transformer_block.py"),
    "multi_head_attention.multi_head_attention_backward": Twin(("multi_head_attention.multi_head_attention_backward",), "test_transformer_block.py"),
    "transformer_block.transformer_block_forward": Twin(("transformer_block.transformer_block_forward",), "test_transformer_block.py"),
    "transformer_block.transformer_block_backward": Twin(("transformer_block.transformer_block_backward",), "test_transformer_block.py"),
    "next_event.next_event_forward": Twin(("next_event.NextEvents.all_orders",), "test_model.py"),
    "next_event.next_event_backward": Twin(("next_event.NextEvents.all_orders",), "test_model.py"),
    "next_event.next_time_forward": Twin(("next_event.NextEvents.with_next_time",), "test_model.py"),
    "next_event.next_time_backward": Twin(("next_event.NextEvents.with_next_time_backward",), "test_model.py"),
    "model.model_forward": Twin(("model.CudaModel.trunk",), "test_model.py"),
    "model.model_backward": Twin(("model.CudaModel.trunk_backward",), "test_model.py"),
    "model.loss_forward": Twin(("model.CudaModel.loss_and_gradients",), "test_model.py"),
    "model.loss_backward": Twin(("model.CudaModel.loss_and_gradients",), "test_model.py"),
    # steps that are neither forward nor backward
    "adamw.adamw_step": Twin(("adamw.adamw_step",), "test_adamw.py"),
    "adamw.global_norm": Twin(("adamw.global_norm",), "test_adamw.py"),
    "kv_ring.kv_ring_next": Twin(("kv_ring.kv_ring_next",), "test_kv_ring.py"),
    "kv_ring.kv_ring_append": Twin(("kv_ring.kv_ring_append",), "test_kv_ring.py"),
    "multi_head_attention.multi_head_attention_decode": Twin(("attention_decode.attention_decode",), "test_kv_ring.py"),
    "transformer_block.transformer_block_decode": Twin(("decode.CudaDecoder.block_step",), "test_decode.py"),
    "model.model_decode": Twin(("decode.CudaDecoder.step",), "test_decode.py"),
}
