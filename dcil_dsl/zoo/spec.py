"""From a SPEC of the command line to a model.

In:   "torchvision:resnet50", "timm:NAME", "hf:CLASS", "dcil:resnet32", "package.module:callable"
      or "path/to/file.py:callable"; the number of classes and options of the recipe's model block.
Out:  an nn.Module with fresh weights, or an InputError that says what is wrong with the spec.
Not:  no trained weights (weights.py), no tracing. Nothing is downloaded.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import shlex
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from torch import nn

from dcil_dsl.diagnostics import InputError
from dcil_dsl.diagnostics.suggest import nearest
from dcil_dsl.zoo import resnet_cifar, small_vit
from dcil_dsl.zoo.transformers_classes import transformers_builder

SOURCES = ("torchvision", "timm", "hf", "dcil")
OURS = resnet_cifar.BUILDERS | {"small_vit": small_vit.SmallViT}
FORMS = (
    "a model is written torchvision:NAME, timm:NAME, hf:CLASS, dcil:NAME, "
    "package.module:callable or path/to/file.py:callable"
)


def build_model(
    spec: str, num_classes: int | None = None, options: dict | None = None
) -> nn.Module:
    """Build the model that `spec` names, with fresh weights.

    num_classes  passed where the builder has such a parameter; left out where it has none
    options      the builder's other keywords; one that it does not take is an error

    Raises InputError for an unknown source or name, for an option that is not taken, for what is
    not an nn.Module, and for whatever the user's own code raises, with its file and line.
    """
    source, _, name = spec.rpartition(":")
    if not source or not name:
        raise InputError(f"`{spec}` is not a model spec", _likely(spec) + FORMS)
    match source:
        case "torchvision":
            builder, fixed = _torchvision_builder(name)
        case "timm":
            builder, fixed = _timm_builder(name)
        case "dcil":
            builder, fixed = _pick(OURS, name, "dcil"), {}
        case "hf":
            builder, has_classes = transformers_builder(name)
            fixed = {}
            if has_classes and num_classes is not None:
                options = {"num_labels": num_classes} | dict(options or {})
            num_classes = None  # transformers call it num_labels
        case _:
            builder, fixed = _user_callable(source, name, spec), {}
    return _call(builder, fixed, num_classes, dict(options or {}), spec)


def _likely(spec: str) -> str:
    """What a spec without its source, or without its name, was meant for."""
    name = spec.strip(":")
    if name.endswith(".py"):
        return f"a callable in the file is missing, `{name}:NAME`; "
    if not spec or name in SOURCES:
        return ""
    known = {other: source for source in ("torchvision", "dcil") for other in _names(source)}
    near = nearest(name, known)
    return f"did you mean `{known[near]}:{near}`? " if near else ""


def _names(source: str) -> list[str]:
    from torchvision.models import list_models

    return list(OURS) if source == "dcil" else list_models()


def stored_spec(spec: str | None, holder: object) -> str:
    """The spec that a file names, if nothing but a library's own code comes of it.

    holder  the file or folder, for the InputError where it is code of somebody's own: `os:system`
            is a spec, too, and the options beside it would be its arguments.
    """
    if spec is None:
        raise InputError(f"{holder} does not name its model", help="name it with --model SPEC")
    if spec.rpartition(":")[0] not in SOURCES:
        raise InputError(
            f"the model of {holder} is somebody's own code, {spec}, which a file cannot ask to run",
            help=f"if you know it: --model {shlex.quote(spec)}",
        )
    return spec


def _torchvision_builder(name: str) -> tuple[Callable, dict]:
    """The builder and what keeps it from downloading: weights_backbone is trained by default."""
    from torchvision import models

    builders = {known: models.get_model_builder(known) for known in models.list_models()}
    builder = _pick(builders, name, "torchvision")
    named = inspect.signature(builder).parameters
    fixed = {key: None for key in ("weights", "weights_backbone") if key in named}
    if name in ("googlenet", "inception_v3"):
        fixed["init_weights"] = True  # what None means there, without the warning
    return builder, fixed


def _timm_builder(name: str) -> tuple[Callable, dict]:
    try:
        import timm
    except ImportError:
        fact = f"`timm:{name}` needs timm, which is not installed"
        raise InputError(fact, "pip install timm") from None
    own = dict(checkpoint_path=None, pretrained_cfg=None, pretrained_cfg_overlay=None)
    model, _, _ = name.partition(".")  # "vit_small_patch16_224.augreg_in1k" names weights too
    _pick(dict.fromkeys(timm.list_models()), model, "timm")

    def builder(**keywords):
        return timm.create_model(name, **keywords)

    return builder, {"pretrained": False} | own


def _pick(known: dict, name: str, source: str):
    if name in known:
        return known[name]
    near = nearest(name, known)
    if near:
        hint = f"did you mean `{source}:{near}`?"
    elif len(known) < 20:
        hint = f"{source} has {', '.join(known)}"
    else:
        hint = f"{source} has {len(known)} models, none of a similar name"
    raise InputError(f"{source} has no model called `{name}`", hint)


# -- the user's own code -------------------------------------------------------------------------


def _user_callable(source: str, name: str, spec: str) -> Callable:
    module = _import_file(source, spec) if source.endswith(".py") else _import_module(source, spec)
    value = module
    for part in name.split("."):
        if not hasattr(value, part):
            near = nearest(part, dir(value))
            hint = f"did you mean `{near}`?" if near else f"looked in {module.__file__}"
            raise InputError(f"`{spec}`: {source} has nothing called `{part}`", hint)
        value = getattr(value, part)
    if not callable(value):
        fact = f"`{spec}` is of type {type(value).__name__}, not a callable"
        raise InputError(fact, "name a function or a class")
    return value


def _import_file(path: str, spec: str):
    file = Path(path).expanduser()
    if not file.is_file():
        raise InputError(f"`{spec}`: there is no file {path}", f"looked at {file.absolute()}")
    identity = f"dcil_model_{re.sub(r'[^0-9A-Za-z]', '_', str(file.resolve().with_suffix('')))}"
    module_spec = importlib.util.spec_from_file_location(identity, file.resolve())
    module = importlib.util.module_from_spec(module_spec)
    # In sys.modules so that dataclasses and pickle find the module by its name; the folder in
    # sys.path so that the file imports its neighbours as it does under `python file.py`.
    sys.modules[identity] = module
    sys.path.insert(0, str(file.resolve().parent))
    try:
        module_spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[identity]
        raise _in_user_code(error, spec, "cannot be imported") from error
    finally:
        sys.path.remove(str(file.resolve().parent))
    return module


def _import_module(source: str, spec: str):
    if not all(part.isidentifier() for part in source.split(".")):
        near = nearest(source, SOURCES)
        hint = f"did you mean `{near}`? {FORMS}" if near else FORMS
        raise InputError(f"`{spec}`: `{source}` is no source of models", hint)
    # An installed program does not search the current folder, `python -m` does: so do we.
    sys.path.insert(0, "")
    try:
        return importlib.import_module(source)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{source}.".startswith(f"{error.name}."):
            raise _in_user_code(error, spec, "cannot be imported") from error
        near = nearest(source, SOURCES)
        hint = f"did you mean `{near}:{spec.rpartition(':')[2]}`? " if near else ""
        raise InputError(f"`{spec}`: there is no module `{error.name}`", hint + FORMS) from error
    except (Exception, SystemExit) as error:
        raise _in_user_code(error, spec, "cannot be imported") from error
    finally:
        sys.path.remove("")


def _in_user_code(error: BaseException, spec: str, what: str) -> InputError:
    """What the user's code raised, with the innermost line that is not the import machinery."""
    if isinstance(error, SyntaxError) and error.filename:
        place = f"{error.filename}:{error.lineno}"
    else:
        frames = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename != __file__ and not frame.filename.startswith("<frozen")
        ]
        # The user's own line says more than the library's that it called.
        own = [frame for frame in frames if "site-packages" not in frame.filename]
        innermost = (own or frames or [None])[-1]
        place = f"{innermost.filename}:{innermost.lineno}" if innermost else None
    message = " ".join(str(error).split())
    fact = f"{type(error).__name__}: {message}" if message else type(error).__name__
    return InputError(f"`{spec}` {what}: {fact}", f"raised at {place}" if place else None)


# -- the call ------------------------------------------------------------------------------------


def _call(
    builder: Callable, fixed: dict, num_classes: int | None, options: dict, spec: str
) -> nn.Module:
    try:
        parameters = inspect.signature(builder).parameters
    except (TypeError, ValueError):  # some builtins have none
        parameters = {}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = [
        n for n, p in parameters.items() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    for option in options:
        if option in fixed:
            raise InputError(f"`{spec}`: the option `{option}` is ours to set", "see --weights")
        if option not in named and not takes_any:
            raise _unknown_option(option, [n for n in named if n not in fixed], spec)
    keywords = fixed | options
    if num_classes is not None and ("num_classes" in named or takes_any):
        keywords.setdefault("num_classes", num_classes)
    elif "num_classes" not in keywords and _must_have(parameters.get("num_classes")):
        raise InputError(
            f"`{spec}` must be told its `num_classes`",
            "the recipe says how many: `model NAME { classes = 10 }`; in a training the data do; "
            "of a file by itself nothing does, so give it a default",
        )
    try:
        model = builder(**keywords)
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        refused = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if isinstance(error, TypeError) and refused:
            if refused[1] in options:
                raise _unknown_option(refused[1], [], spec) from error
            if refused[1] == "num_classes" and "num_classes" in keywords:
                # **kwargs that lead to a constructor without num_classes: not accepted after all.
                return _call(builder, fixed, None, options, spec)
        raise _in_user_code(error, spec, "cannot be built") from error
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        raise InputError(f"`{spec}` returned a value of type {kind}, not a torch.nn.Module")
    return model


def _must_have(parameter: inspect.Parameter | None) -> bool:
    return (
        parameter is not None
        and parameter.default is parameter.empty
        and parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    )


def _unknown_option(option: str, named: list[str], spec: str) -> InputError:
    near = nearest(option, named)
    if near:
        hint = f"did you mean `{near}`?"
    else:
        hint = f"it takes {', '.join(named)}" if named else None
    return InputError(f"`{spec}` takes no option `{option}`", hint)
