"""Faults seeded on purpose into the oracle, or into the kernels. `python -m tests.mutants` sees that the tests catch each."""
