"""Dual x Plan x data -> a run: the loop, its optimizer, its checkpoints, its folder.

Nothing is imported here: options.py is read without torch.
"""
