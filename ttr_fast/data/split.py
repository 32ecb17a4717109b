"""Whole entities set aside for evaluation, by a hash of the name: new data never moves an entity to the other side."""

from hashlib import blake2b

import numpy as np

from ..errors import UserError
from .sequences import EventSequences


def split_by_entity(events: EventSequences, held_out: float, seed: int = 0) -> tuple[EventSequences, EventSequences]:
    """(train, held_out): about the fraction held_out, between 0 and 1, of the entities goes to the second.

    An entity's side depends on its name, held_out and seed alone, and a larger held_out only adds entities to that
    side. Raises UserError if held_out is out of range or one side would be empty.
    """
    if not 0 < held_out < 1:
        raise UserError(f"the held-out fraction is {held_out}, expected a number between 0 and 1")
    aside = np.array([uniform(name, seed) < held_out for name in events.entities], bool)
    for side, name in ((~aside, "training"), (aside, "held-out")):
        if not side.any():
            choice = f"holding out {held_out} of {events.n_sequences} entities with seed {seed}"
            raise UserError(f"{choice} leaves the {name} side empty, expected an entity on each side")
    return events.select(np.flatnonzero(~aside)), events.select(np.flatnonzero(aside))


def uniform(name: str, seed: int) -> float:
    """A number in [0, 1) that depends on the name and the seed alone: the 53 leading bits of a hash, as many as float64 holds."""
    digest = blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest) >> 11) / 2**53
