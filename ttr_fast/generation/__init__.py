"""Decoding the future: one event after the other, with the keys and values of the past in a ring buffer."""
