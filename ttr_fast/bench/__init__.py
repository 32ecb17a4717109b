"""What `ttr bench` measures, and how: one file for each kind (attention, gemm, …), measured in worker processes, ours and a peer in turn."""
