"""What people deploy: one path as an ordinary model, its file, and the proof of its sparsity."""
