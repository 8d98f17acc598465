"""Kernels: the same sums in less time. Nobody needs to read them to know what a model computes."""
