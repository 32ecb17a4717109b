"""Faults seeded into the oracle on purpose. `python -m tests.mutants` sees that the tests catch each."""
