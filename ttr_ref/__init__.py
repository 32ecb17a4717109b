"""The temporal transformer in plain NumPy: every module with its gradient by hand, to be read. `ttr_fast` runs the same names fast."""
