"""The reference: DCIL written plainly, as two models, two forwards and a loop.

It shares no code with dcil_dsl. Each path is a whole copy of the model that holds the weights
it sees; gradients are read off the copies and put together by the update rules; masks come
from one selection among all magnitudes.
"""

import copy
from dataclasses import is_dataclass

import torch
import torch.nn.functional as F
from torch.utils import _pytree as pytree


class TwoForwards:
    """Trains `model` on two paths, sparse (w * m) and dense (w).

    pruned    names of the weights with a mask; `sparsity(step)` is their share of zeros
    private   names of the modules that each path has for itself
    shares    {part: (sparse's share, dense's share)} for "kept", "pruned", "rest"
    """

    def __init__(self, model, pruned, private, shares, sparsity, losses):
        self.master = copy.deepcopy(model)
        self.twin = {name: copy.deepcopy(model.get_submodule(name)) for name in private}
        self.pruned, self.private, self.shares = list(pruned), set(private), shares
        self.sparsity, self.losses = sparsity, losses
        self.weights = dict(self.master.named_parameters())
        self.masks = {name: torch.ones_like(self.weights[name]) for name in self.pruned}
        self.momentum = {}

    def refresh(self, step):
        scores = [self.weights[n].detach().abs().flatten() for n in self.pruned]
        for score in scores:
            score[score.argmax()] = torch.inf  # the floor: one weight a layer
        scores = torch.cat(scores)
        keep = int(scores.numel() * (1 - self.sparsity(step)) + 1e-6)
        flat = torch.zeros_like(scores)
        flat[scores.topk(keep).indices] = 1
        sizes = [self.weights[name].numel() for name in self.pruned]
        for name, part in zip(self.pruned, flat.split(sizes)):
            self.masks[name] = part.view_as(self.weights[name])

    def paths(self):
        """Two models that hold what each path sees."""
        sparse, dense = copy.deepcopy(self.master), copy.deepcopy(self.master)
        with torch.no_grad():
            for name in self.pruned:
                sparse.get_parameter(name).mul_(self.masks[name])
        for name, module in self.twin.items():
            owner, _, leaf = name.rpartition(".")
            setattr(dense.get_submodule(owner), leaf, copy.deepcopy(module))
        return sparse, dense

    def is_private(self, name):
        return any(name.startswith(f"{module}.") for module in self.private)

    def gradients(self, inputs, target, step):
        """Outputs, the loss, and every gradient: shared and deployed ones, then the twins'.

        inputs  (args, kwargs) of both forwards; each gets tensors of its own
        """
        sparse, dense = self.paths()
        args, kwargs = copy.deepcopy(inputs)
        y_sparse = sparse(*args, **kwargs)
        # Statistics that both paths share are moved by the sparse forward, then the dense one.
        for name, buffer in dict(dense.named_buffers()).items():
            if not self.is_private(name):
                buffer.data = sparse.get_buffer(name).clone()  # it may change its shape
        args, kwargs = copy.deepcopy(inputs)
        y_dense = dense(*args, **kwargs)
        loss = self.losses(y_sparse, y_dense, target, step)
        loss.backward()
        with torch.no_grad():
            for name, buffer in self.master.named_buffers():
                source = sparse if self.is_private(name) else dense
                buffer.data = source.get_buffer(name).clone()
            for module, twin in self.twin.items():
                for name, buffer in twin.named_buffers():
                    buffer.data = dense.get_submodule(module).get_buffer(name).clone()
        grads = {}
        for name in self.weights:
            g_sparse, g_dense = (
                torch.zeros_like(p) if p.grad is None else p.grad  # a branch that was not taken
                for p in (sparse.get_parameter(name), dense.get_parameter(name))
            )
            if self.is_private(name):
                grads[name] = g_sparse
                module = next(m for m in self.private if name.startswith(f"{m}."))
                grads[f"{module}__dense{name[len(module) :]}"] = g_dense
                continue
            routed = {p: a * g_sparse + b * g_dense for p, (a, b) in self.shares.items()}
            if name in self.masks:
                m = self.masks[name]
                grads[name] = m * routed["kept"] + (1 - m) * routed["pruned"]
            else:
                grads[name] = routed["rest"]
        return y_sparse, y_dense, loss.detach(), grads

    def sgd(self, grads, lr, momentum, weight_decay):
        """Nesterov's momentum as torch.optim.SGD defines it, by hand."""
        everything = dict(self.weights)
        for module, twin in self.twin.items():
            everything |= {f"{module}__dense.{n}": p for n, p in twin.named_parameters()}
        with torch.no_grad():
            for name, w in everything.items():
                g = grads[name] + weight_decay * w
                v = self.momentum[name] = momentum * self.momentum.get(name, 0) + g
                w -= lr * (g + momentum * v)


def weighted_squares(y_sparse, y_dense, target, step):
    """For outputs of any structure: squares of the numbers, each tensor with a weight."""
    total = 0
    for coefficient, output in ((1.0, y_sparse), (0.5, y_dense)):
        for place, values in enumerate(numbers_in(output)):
            total = total + coefficient / (place + 1) * values.square().mean()
    return total


def numbers_in(output):
    """The tensors of real numbers in an output, in order."""
    if is_dataclass(output) and not isinstance(output, dict):
        output = vars(output)
    leaves = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]
    return [leaf for leaf in leaves if leaf.is_floating_point() and leaf.numel()]


def cross_entropies_and_kl(y_sparse, y_dense, target, step, kl_from=1, t=2.0):
    """CE on both paths; from step `kl_from` on, KL both ways with the teacher held still."""
    loss = F.cross_entropy(y_sparse, target) + F.cross_entropy(y_dense, target)
    if step >= kl_from:
        for student, teacher in ((y_sparse, y_dense), (y_dense, y_sparse)):
            log_p = (teacher.detach() / t).log_softmax(1)
            q = (student / t).log_softmax(1)
            loss = loss + t * t * (log_p.exp() * (log_p - q)).sum(1).mean()
    return loss
