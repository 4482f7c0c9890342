"""Published update rules written plainly: a two-layer network in float64, SGD by hand, no dcil_dsl.

Every function takes one step from the state (weights, velocities) to the next, or makes the masks.
"""

import math

import torch
import torch.nn.functional as F

LR, MOMENTUM, DECAY = 0.3, 0.9, 1e-2


def network(x, weights):
    first, second = weights
    return torch.relu(x @ first.T) @ second.T


def gradients(x, y, seen):
    """dL/dv of the weights that a path sees."""
    leaves = [v.detach().clone().requires_grad_() for v in seen]
    F.cross_entropy(network(x, leaves), y).backward()
    return [leaf.grad for leaf in leaves]


def sgd(weights, velocities, grads):
    for w, v, g in zip(weights, velocities, grads):
        v.mul_(MOMENTUM).add_(g + DECAY * w)
        w.sub_(LR * v)


def largest(weights, keep):
    """Masks of the `keep` largest |w| of all layers together."""
    sizes = torch.cat([w.abs().flatten() for w in weights])
    order = sizes.argsort(descending=True)
    flat = torch.zeros_like(sizes, dtype=torch.bool)
    flat[order[:keep]] = True
    parts = flat.split([w.numel() for w in weights])
    return [part.view_as(w) for part, w in zip(parts, weights)]


def soft_views(weights, masks, power=1, rescale=True):
    """sign(w) (|w|^p - t^p)^(1/p) on what is kept; with ST-3's scale of each filter, or without."""
    threshold = max((w.abs() * ~m).max().item() for w, m in zip(weights, masks))
    views = []
    for w, m in zip(weights, masks):
        kept, all_of_it = (w.abs() * m).mean(1, keepdim=True), w.abs().mean(1, keepdim=True)
        scale = 1.01 / ((kept + 1e-6) / (all_of_it + 1e-6) + 0.01) if rescale else 1
        root = (w.abs() ** power - threshold**power).clamp(min=0) ** (1 / power)
        views.append(scale * w.sign() * root * m)
    return views


def drop_and_grow(mask, w, grad, share):
    """RigL on one layer: the new mask."""
    keep = int(mask.sum())
    change = int(share * keep)
    size = torch.where(mask, w.abs(), -1.0).flatten()
    new = torch.zeros_like(size, dtype=torch.bool)
    new[size.argsort(descending=True)[: keep - change]] = True
    want = torch.where(new, -1.0, grad.abs().flatten())
    new[want.argsort(descending=True)[:change]] = True
    return new.view_as(mask)


def cosine_share(share, step, stop):
    return share / 2 * (1 + math.cos(math.pi * step / stop)) if step < stop else 0.0


def two_of_four(w):
    """The two largest of each four inputs."""
    groups = w.abs().reshape(w.shape[0], -1, 4)
    order = groups.argsort(dim=2, descending=True)
    mask = torch.zeros_like(groups, dtype=torch.bool).scatter(2, order[:, :, :2], True)
    return mask.view_as(w)
