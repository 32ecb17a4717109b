"""The training loop, what it measures and what it leaves on disk."""
