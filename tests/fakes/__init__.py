"""NVIDIA libraries of ours with the real ABI, in C, built when a test first needs them."""
