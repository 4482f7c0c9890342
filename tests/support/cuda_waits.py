"""Count how often the host waits for a CUDA device."""

import warnings

import torch


def count_waits(work):
    work()  # the first time, libraries set themselves up
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    # Not the notice that the mode is a prototype, which says "synchronizing operations".
    return sum("called a synchronizing" in str(warning.message) for warning in caught)
