"""Run a pruned network on a CPU: an export to plain data, and kernels that skip the zeros."""
