"""Small pictures and random numbers for tests of augmentations."""

import torch


def pictures(count, channels=3, height=20, width=28):
    """Smooth, with noise: what resizing, equalising and shearing have something to do with."""
    generator = torch.Generator().manual_seed(count)
    coarse = torch.rand(count, channels, 5, 7, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    noise = torch.rand(count, channels, height, width, generator=generator)
    return (200 * smooth + 55 * noise).to(torch.uint8)


def chance(seed=0):
    return torch.Generator().manual_seed(seed)
