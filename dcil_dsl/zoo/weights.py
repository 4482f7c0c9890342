"""Load trained weights into a freshly built model: `--weights`.

In:   a model, and a file (.safetensors, .pth, .pt), torchvision's own name for weights, or
      `pretrained` for a model of timm.
Out:  the model with the weights in it, and notes on everything that was not a plain copy.
Not:  no pickled objects: a .pth must load with weights_only=True. All tensors must match;
      otherwise every mismatch is listed and nothing is loaded.

One mismatch is allowed: the head, the last Linear or Conv2d of model.named_modules(). Where the
file's tensors for it differ from the model's only in the first dimension (the number of classes),
its weight and bias stay fresh and a note says so.
"""

from __future__ import annotations

import pickle
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from dcil_dsl.diagnostics import InputError
from dcil_dsl.diagnostics.counting import count
from dcil_dsl.diagnostics.optional import library
from dcil_dsl.diagnostics.suggest import nearest
from dcil_dsl.zoo.example import takes_keywords
from dcil_dsl.zoo.pretrained import holds_weights, load_folder

models = library("torchvision.models")

SUFFIXES = (".safetensors", ".pth", ".pt")
OF_RUN = "sparse.safetensors"  # what the folder of a run has
MAX_LISTED = 12  # mismatches; of the rest the count is given
DOWNLOAD_TIMEOUT = 10.0  # seconds without an answer


class OtherHead(InputError):
    """The weights are of another number of classes, `classes`, than the model."""

    def __init__(self, source: str, classes: int):
        self.classes = classes
        has = count(classes, "class", "classes")
        super().__init__(f"{source} has {has}, and the model another number")


def load_weights(model: nn.Module, source: str, spec: str, new_head: bool = True) -> list[str]:
    """Load `source` into `model`, in place; return notes on what was not a plain copy.

    source    a path, of the folder of a run, or of transformers, too; with a torchvision spec also
              DEFAULT, IMAGENET1K_V2 or, in full, ResNet50_Weights.IMAGENET1K_V2; with a timm spec
              `pretrained`, the weights of its tag
    new_head  whether the head stays fresh where the classes are others; else OtherHead
    Raises InputError: no such file or name, an unreadable file, a failed download, or tensors
    that do not fit (all of them at once: missing, unexpected, of another shape).
    """
    notes: list[str] = []
    folder = Path(source).expanduser()
    if folder.is_dir() and takes_keywords(model) and holds_weights(folder):
        return load_folder(model, folder, new_head)
    if (folder / "plan.json").is_file() and (folder / OF_RUN).is_file():
        source = str(folder / OF_RUN)
    if Path(source).expanduser().is_file() or "/" in source or source.endswith(SUFFIXES):
        tensors = _unwrap(_read(Path(source).expanduser()), source, notes)
    else:
        tensors = _download(source, spec, model, notes)
    tensors = _fit(tensors, model, source, notes, new_head)
    model.load_state_dict(tensors)
    return notes


# -- reading -------------------------------------------------------------------------------------


def _read(path: Path) -> object:
    if path.is_dir():
        inside = [near.name for near in sorted(path.iterdir()) if near.suffix in SUFFIXES]
        help = f"it holds {', '.join(inside)}" if inside else f"one ends in {', '.join(SUFFIXES)}"
        raise InputError(f"{path} is a folder, not a weights file", help)
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is a pipe or a device, not a weights file")
    if not path.is_file():
        raise InputError(f"the weights file {path} does not exist", f"looked at {path.absolute()}")
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path} is not a weights file", f"it should end in {', '.join(SUFFIXES)}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} is damaged, or holds more than tensors, which could run code when loaded",
            "where it comes from, save the tensors alone: torch.save(model.state_dict(), FILE)",
        ) from error
    except Exception as error:  # the formats' own errors, of many types
        fact = " ".join(str(error).split())[:200]
        raise InputError(f"{path} cannot be read: {type(error).__name__}: {fact}") from error


def _unwrap(loaded: object, source: str, notes: list[str]) -> dict[str, Tensor]:
    """Take off what training scripts wrap around a state dict, and say so."""
    if isinstance(loaded, dict):
        for key in ("state_dict", "model"):
            if isinstance(loaded.get(key), dict):
                loaded = loaded[key]
                notes.append(f"took the entry `{key}` of {source}")
                break
    if not isinstance(loaded, dict) or not loaded:
        raise InputError(f"{source} holds {type(loaded).__name__}, not a state dict of tensors")
    odd = [str(k) for k, v in loaded.items() if not isinstance(k, str) or not isinstance(v, Tensor)]
    if odd:
        raise InputError(f"{source}: not a state dict, these entries are not tensors: {_some(odd)}")
    odd = [name for name, value in loaded.items() if _is_odd(value)]
    if odd:
        raise InputError(
            f"{source}: these tensors are sparse, quantized or on the meta device: {_some(odd)}",
            "save dense ones: tensor.to_dense(), tensor.dequantize()",
        )
    if "sums" in loaded and any(name.startswith("optimizer/") for name in loaded):
        raise InputError(
            f"{source} is the checkpoint of a run",
            "its weights are the run's `sparse.safetensors`, or what `dcil export RUN` writes",
        )
    tensors = dict(loaded)
    for prefix in ("module.", "_orig_mod.", "module."):  # DDP and torch.compile, in either order
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name[len(prefix) :]: value for name, value in tensors.items()}
            notes.append(f"took the prefix `{prefix}` off every name of {source}")
    return tensors


def _download(source: str, spec: str, model: nn.Module, notes: list[str]) -> dict[str, Tensor]:
    library, _, name = spec.rpartition(":")
    if library == "timm":
        return _download_timm(source, name, spec)
    if library != "torchvision":
        raise InputError(
            f"there is no file `{source}`; only models of torchvision and timm have weights by "
            "name",
            f"{spec} takes a file that ends in {', '.join(SUFFIXES)}",
        )
    known = models.get_model_weights(name)
    enum, _, entry = source.rpartition(".")
    if enum not in ("", known.__name__) or entry not in known.__members__:
        near = nearest(entry, known.__members__)
        names = ", ".join(known.__members__) or "no weights"
        hint = f"did you mean `{near}`?" if near else f"{spec} has {names}"
        raise InputError(f"`{source}` is neither a file nor weights of {spec}", hint)
    weights = known[entry]
    with _reported(str(weights), str(weights.url)):
        tensors = dict(weights.get_state_dict(progress=False, check_hash=True, weights_only=True))
    attributes = vars(model)
    if attributes.get("transform_input") is False:
        attributes["transform_input"] = True  # googlenet, inception_v3: trained on inputs in -1..1
        notes.append(f"set transform_input, as {weights} was trained with it")
    return tensors


def _download_timm(source: str, name: str, spec: str) -> dict[str, Tensor]:
    """The weights of the tag in the name, else of timm's default one, by timm's own loader."""
    if source != "pretrained":
        raise InputError(
            f"`{source}` is neither a file nor weights of {spec}", "--weights pretrained"
        )
    import timm

    try:
        cfg = timm.get_pretrained_cfg(name)
    except RuntimeError:  # no such tag
        cfg = None
    if cfg is None or not cfg.has_weights:
        tags = ", ".join(timm.list_pretrained(f"{name.partition('.')[0]}.*")) or "none"
        raise InputError(f"{spec} has no trained weights", f"its name with trained weights: {tags}")
    where = f"hf-hub:{cfg.hf_hub_id}" if cfg.hf_hub_id else str(cfg.url)
    with _reported(f"the weights of timm:{name}", where):
        trained = timm.create_model(name, pretrained=True)
    return dict(trained.state_dict())


@contextmanager
def _reported(what: str, where: str) -> Iterator[None]:
    """Within a time limit; InputError for a download that fails."""
    earlier = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)  # torch.hub itself waits for ever
    try:
        yield
    except Exception as error:  # urllib, socket, ssl, a wrong hash, a full disk
        fact = " ".join(str(error).split())[:200]
        raise InputError(
            f"cannot download {what}: {type(error).__name__}: {fact}",
            f"fetch {where} elsewhere and give the file with --weights FILE",
        ) from error
    finally:
        socket.setdefaulttimeout(earlier)


# -- fitting -------------------------------------------------------------------------------------


def _fit(
    found: dict[str, Tensor], model: nn.Module, source: str, notes: list[str], new_head: bool
) -> dict[str, Tensor]:
    """The model's own tensors, taken from `found`; or an InputError that lists every mismatch."""
    own = model.state_dict()
    found = {_renamed(name, own): value for name, value in found.items()}
    fresh = _other_head(found, own, model)
    if fresh and not new_head:
        raise OtherHead(source, found[fresh[0]].shape[0])
    if fresh:
        there = count(found[fresh[0]].shape[0], "class", "classes")
        sizes = f"{there} there, {own[fresh[0]].shape[0]} here"
        notes.append(f"the head stays fresh, {' and '.join(fresh)}: {sizes}")
    # Files from before torch 0.4.1 have no counters of batches; only momentum=None reads them.
    counters = [n for n in own if n not in found and n.endswith("num_batches_tracked")]
    if counters:
        has_no = count(len(counters), "counter is", "counters are")
        notes.append(f"num_batches_tracked: {has_no} missing from {source} and kept at 0")

    kept = {*fresh, *counters}
    missing = [f"missing     {n} {_shape(own[n])}" for n in own if n not in found and n not in kept]
    extra = [f"unexpected  {n} {_shape(found[n])}" for n in found if n not in own]
    both = [n for n in own if n in found and n not in kept]
    shapes = [
        f"shape       {n} {_shape(found[n])} in the file, {_shape(own[n])} in the model"
        for n in both
        if found[n].shape != own[n].shape
    ]
    kinds = [
        f"type        {n} {_dtype(found[n])} in the file, {_dtype(own[n])} in the model"
        for n in both
        if found[n].is_floating_point() != own[n].is_floating_point()
    ]
    broken = [
        f"not finite  {n} {_shape(found[n])}: {count(number, 'number')}"
        for n in both
        if found[n].shape == own[n].shape and (number := _num_broken(found[n], own[n]))
    ]
    wrong = missing + extra + shapes + kinds + broken
    if wrong:
        rest = [f"and {len(wrong) - MAX_LISTED} more"] if len(wrong) > MAX_LISTED else []
        differ = count(len(wrong), "tensor differs", "tensors differ")
        message = f"{source} does not fit the model: {differ}"
        raise InputError(message, "\n".join(wrong[:MAX_LISTED] + rest))
    for dtype in sorted({_dtype(found[n]) for n in both if _converted(found[n], own[n])}):
        number = sum(_converted(found[n], own[n]) and _dtype(found[n]) == dtype for n in both)
        notes.append(f"converted {count(number, 'tensor')} from {dtype}")
    return {n: own[n] if n in kept else found[n].to(own[n].dtype) for n in own}


def _renamed(name: str, own: dict[str, Tensor]) -> str:
    """torchvision's DenseNet files say "norm.1.weight" where the model has "norm1.weight"."""
    renamed = re.sub(r"\.(norm|conv)\.(\d)\.", r".\1\2.", name)
    return renamed if name not in own and renamed in own else name


def _other_head(found: dict[str, Tensor], own: dict[str, Tensor], model: nn.Module) -> list[str]:
    """The head's tensors if they differ only in the number of classes, else none."""
    layers = [n for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    if not layers:
        return []
    prefix = f"{layers[-1]}." if layers[-1] else ""
    head = [n for n in (f"{prefix}weight", f"{prefix}bias") if n in own]
    if not head or any(n not in found or found[n].dim() != own[n].dim() for n in head):
        return []
    resized = all(found[n].shape[0] != own[n].shape[0] for n in head)
    alike = all(found[n].shape[1:] == own[n].shape[1:] for n in head)
    return head if resized and alike else []


def _num_broken(found: Tensor, own: Tensor) -> int:
    """How many numbers are NaN or infinite, where the model's own are finite."""
    if not (own.is_floating_point() and found.is_floating_point()):
        return 0
    # After the conversion: a number of a wider type may be infinite in the model's type.
    return int((~found.to(own.dtype).isfinite() & own.isfinite()).sum())


def _is_odd(tensor: Tensor) -> bool:
    return tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta


def _converted(found: Tensor, own: Tensor) -> bool:
    return own.is_floating_point() and found.dtype != own.dtype


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
