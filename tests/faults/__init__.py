"""What may go wrong with a process or a disk, done on purpose: each kind a command, `python -m tests.faults kills`, and small in the test suite."""
