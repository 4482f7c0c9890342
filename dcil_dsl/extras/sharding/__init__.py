"""Weights, masks and optimizer state in parts, one on each process: `--shard`."""
