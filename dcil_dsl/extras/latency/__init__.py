"""Targets by the speed that the sparse CPU kernels reach, as measured at several sparsities."""
