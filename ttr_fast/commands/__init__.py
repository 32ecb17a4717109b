"""One file for each `ttr` command: a dataclass of its options and what it does with them."""
