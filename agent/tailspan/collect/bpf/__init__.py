"""The kernel: the BPF object, its probes, its rings."""
