"""Dual x Plan x data -> a run: the loop, the step, the checkpoints, the run folder.

Nothing is imported here: options.py is read without torch.
"""
