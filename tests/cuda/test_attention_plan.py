"""Ranges of places say which keys are read, as the oracle's key set does; ranges of blocks leave nothing out."""

import numpy as np
from hypothesis import given, settings, strategies as st

from tests.ref.cases import Problem, problems
from ttr_fast.cuda.attention_plan import plan_attention
from ttr_ref.timeline import key_set, time_differences


@settings(max_examples=60)
@given(p=problems(("none",), dropout=False, most=20), tile=st.sampled_from([1, 3, 8, 32]))
def test_who_reads_what_and_when(p: Problem, tile: int) -> None:
    plan = plan_attention(p.at_q, p.at_k, p.causal, p.window, tile)
    read = key_set(p.at_q, p.at_k, p.causal, p.window)
    keys = np.arange(read.shape[2])
    np.testing.assert_array_equal((plan.first[:, :, None] <= keys) & (keys < plan.stop[:, :, None]), read)
    delta = plan.time_q[:, :, None] - plan.time_k[:, None, :]
    np.testing.assert_array_equal(np.where(read, delta if p.causal else np.abs(delta), 0), time_differences(p.at_q, p.at_k, read, p.causal))
    for blocks, reads in ((plan.keys, read), (plan.queries, read.swapaxes(1, 2))):
        assert blocks.shape == (read.shape[0], -(-reads.shape[1] // tile), 2)
        for b, block in np.ndindex(blocks.shape[:2]):
            found = np.flatnonzero(reads[b, block * tile : (block + 1) * tile].any(0))
            begin, end = blocks[b, block]
            assert (begin, end) == (found[0], found[-1] + 1) if found.size else begin >= end
