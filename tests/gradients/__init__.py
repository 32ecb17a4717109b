"""Every entry of every gradient of the oracle against the complex step. `python -m tests.gradients` prints the table."""
