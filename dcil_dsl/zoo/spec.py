"""Build the model that a SPEC of the command line names.

In:   "torchvision:resnet50", "timm:NAME", "hf:CLASS", "hf:FOLDER", "dcil:resnet32",
      "package.module:callable" or "path/to/file.py:callable"; the number of classes and the options
      of the recipe's model block.
Out:  an nn.Module with fresh weights, or an InputError that says what is wrong with the spec.
Not:  no trained weights (weights.py), no tracing. Nothing is downloaded.

`hf:` takes a class of transformers, or a folder with a config.json, and options that replace fields
of the configuration. Two underscores lead into an inner one: `text_config__hidden_size = 64`.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from torch import nn

from dcil_dsl.diagnostics import InputError
from dcil_dsl.diagnostics.optional import is_installed, library
from dcil_dsl.diagnostics.suggest import nearest
from dcil_dsl.model.trace import require_module
from dcil_dsl.words.views import SOURCES
from dcil_dsl.zoo.networks import NETWORKS

models = library("torchvision.models")

FORMS = (
    "a model is written torchvision:NAME, timm:NAME, hf:CLASS, dcil:NAME, "
    "package.module:callable or path/to/file.py:callable"
)
HOW_NAMED = "name it with --model SPEC; in Python model=SPEC, or the module"
HF_FORM = (
    "hf: is followed by a class of transformers, hf:BertForSequenceClassification, or a folder"
)
# Fields that the configuration of every model of transformers takes.
OF_EVERY_MODEL = (
    "num_labels",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "decoder_start_token_id",
)
# Names in transformers that may be models; the package loads a class at its first use.
MODEL_NAME = re.compile(r"[A-Z]\w*(Model|For[A-Z]\w*)")

Builder = Callable[..., object]
Options = dict[str, Any]
T = TypeVar("T")


def build_model(
    spec: str, num_classes: int | None = None, options: Mapping[str, Any] | None = None
) -> nn.Module:
    """Build the model that `spec` names, with fresh weights.

    num_classes  passed to a builder that has this parameter
    options      the builder's other keywords; an unknown one is an error

    Raises InputError for an unknown source, name or option, for a result that is not an nn.Module,
    and for whatever the user's own code raises, with its file and line.
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
            builder, fixed = _pick(NETWORKS, name, "dcil"), {}
        case "hf":
            builder, has_classes = _transformers_builder(name)
            fixed = {}
            if has_classes and num_classes is not None:
                options = {"num_labels": num_classes} | dict(options or {})
            num_classes = None  # transformers calls it num_labels
        case _:
            builder, fixed = user_callable(source, name, spec), {}
    return _call(builder, fixed, num_classes, dict(options or {}), spec)


def is_of_library(spec: str) -> bool:
    """Whether a library builds the model, with fresh weights; otherwise somebody's own code."""
    return spec.rpartition(":")[0] in SOURCES


def _likely(spec: str) -> str:
    """A hint for a spec that lacks its source or its name."""
    name = spec.strip(":")
    if name.endswith(".py"):
        return f"a callable in the file is missing, `{name}:NAME`; "
    if not spec or name in SOURCES:
        return ""
    known = {other: source for source in ("torchvision", "dcil") for other in _names(source)}
    near = nearest(name, known)
    return f"did you mean `{known[near]}:{near}`? " if near else ""


def _names(source: str) -> list[str]:
    if source == "dcil":
        return list(NETWORKS)
    return models.list_models() if is_installed("torchvision") else []


def stored_spec(spec: str | None, holder: object) -> str:
    """The spec that a file names, which may run nothing but a library's own code.

    `os:system` is a spec, too, and the options in the file would be its arguments.

    holder  the file or folder, for the InputError of a spec that names somebody's own code
    """
    if spec is None:
        raise InputError(f"{holder} does not name its model", help=HOW_NAMED)
    if not is_of_library(spec):
        quoted = shlex.quote(spec)
        raise InputError(
            f"the model of {holder} is somebody's own code, {spec}, which a file cannot ask to run",
            help=f"if you know it: --model {quoted}; in Python model={spec!r}, or the module"
            if _can_name(spec)
            else HOW_NAMED,
        )
    return spec


def network_of(
    model: str | nn.Module | None,
    stored: str | None,
    classes: int | None,
    options: Mapping[str, Any],
    holder: object,
) -> nn.Module:
    """The module that is given, or the one of the SPEC that is given, or of the one stored.

    stored, classes, options  what `holder`, a file or folder, says of its model
    """
    if model is not None and not isinstance(model, str):
        require_module(model)
        return model
    spec = stored_spec(stored, holder) if model is None else model
    return build_model(spec, classes, options)


def _can_name(spec: str) -> bool:
    """Whether the name of a class, which a module was trained under, is also a spec of it."""
    return spec.partition(".")[0] != "torch" and not spec.startswith("__main__") and "<" not in spec


def _torchvision_builder(name: str) -> tuple[Builder, Options]:
    """The builder, and the options that keep it from downloading trained weights."""
    builders: dict[str, Builder] = {
        known: models.get_model_builder(known) for known in models.list_models()
    }
    builder = _pick(builders, name, "torchvision")
    named = inspect.signature(builder).parameters
    fixed: Options = {key: None for key in ("weights", "weights_backbone") if key in named}
    if name in ("googlenet", "inception_v3"):
        fixed["init_weights"] = True  # their default, without the warning
    return builder, fixed


def _timm_builder(name: str) -> tuple[Builder, Options]:
    try:
        import timm
    except ImportError:
        fact = f"`timm:{name}` needs timm, which is not installed"
        raise InputError(fact, "pip install timm") from None
    own: Options = dict(checkpoint_path=None, pretrained_cfg=None, pretrained_cfg_overlay=None)
    model, _, _ = name.partition(".")  # "vit_small_patch16_224.augreg_in1k" names weights too
    _pick(dict.fromkeys(timm.list_models()), model, "timm")

    def builder(**keywords: object) -> object:
        return timm.create_model(name, **keywords)

    return builder, {"pretrained": False} | own


def _pick(known: Mapping[str, T], name: str, source: str) -> T:
    if name in known:
        return known[name]
    near = nearest(name, known)
    begun = sorted(one for one in known if one.startswith(name)) if len(name) > 5 else []
    if begun and not (near or "").startswith(name):  # the end of a long name is what is missing
        near = begun[0]
    if near:
        hint = f"did you mean `{source}:{near}`?"
    elif len(known) < 20:
        hint = f"{source} has {', '.join(known)}"
    else:
        hint = f"{source} has {len(known)} models, none of a similar name"
    raise InputError(f"{source} has no model called `{name}`", hint)


# -- transformers --------------------------------------------------------------------------------


def _transformers_builder(name: str) -> tuple[Builder, bool]:
    """A builder of hf:NAME that takes options, and whether the model has a number of classes.

    Raises InputError: transformers is missing or has no such model, or the folder holds none.
    """
    try:
        import transformers
    except ImportError:
        fact = f"`hf:{name}` needs transformers, which is not installed"
        raise InputError(fact, "pip install transformers") from None
    if Path(name).expanduser().is_dir() or "/" in name:
        config, kind = _read_folder(name, transformers)
        fields = config.to_dict()
    else:
        kind, fields = _class_named(name, transformers), {}

    def builder(**options: object) -> object:
        return kind(_configure(kind.config_class, fields, options, f"hf:{name}"))

    return builder, "Classification" in kind.__name__


def _class_named(name: str, transformers: Any) -> Any:
    known = [entry for entry in dir(transformers) if MODEL_NAME.fullmatch(entry)]
    kind: Any = getattr(transformers, name, None) if name in known else None
    is_model = inspect.isclass(kind) and issubclass(kind, transformers.PreTrainedModel)
    if is_model and kind.config_class is not None:
        return kind
    if kind is not None:
        raise InputError(f"`hf:{name}` stands for several models, not for one", HF_FORM)
    near = nearest(name, known) or _by_type(name)
    hint = f"did you mean `hf:{near}`?" if near else f"{HF_FORM}; nothing is downloaded"
    raise InputError(f"transformers has no model called `{name}`", hint)


def _by_type(name: str) -> str | None:
    """BertModel for "bert" and "bert-base-uncased", if their first part is a known type."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    types: dict[str, Any] = {
        kind.replace("_", "-"): model for kind, model in MODEL_MAPPING_NAMES.items()
    }
    parts = name.lower().replace("_", "-").split("-")
    for end in range(len(parts), 0, -1):
        model = types.get("-".join(parts[:end]))
        if model is not None:
            return str(model if isinstance(model, str) else model[0])
    return None


def _read_folder(name: str, transformers: Any) -> tuple[Any, Any]:
    folder = Path(name).expanduser()
    if not (folder / "config.json").is_file():
        what = "holds no config.json" if folder.is_dir() else "is not a folder"
        raise InputError(f"`hf:{name}`: {name} {what}", f"{HF_FORM}; nothing is downloaded")
    try:
        config = transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # whatever transformers finds wrong with the file
        raise InputError(f"`hf:{name}`: its config.json cannot be used: {_flat(error)}") from error
    if not config.architectures:
        fact = f"`hf:{name}`: its config.json names no model under `architectures`"
        raise InputError(fact, "name the class there, or give it as hf:CLASS with options")
    return config, _class_named(config.architectures[0], transformers)


def _configure(kind: Any, fields: Options, options: Options, spec: str) -> Any:
    """A configuration of class `kind`; `options` go over `fields`, inner ones by `outer__inner`."""
    values = dict(fields)
    for option, value in options.items():
        outer, _, inner = option.partition("__")
        known = _fields(kind)
        if not inner:
            _demand(option in known, option, known, spec)
            values[option] = value
            continue
        config = (getattr(kind, "sub_configs", None) or {}).get(outer)
        _demand(config is not None, outer, list(getattr(kind, "sub_configs", {})), spec)
        known = _fields(config)
        _demand(inner in known, inner, known, f"{spec}, {outer}")
        part = values.setdefault(outer, {})
        part[inner] = value
    try:
        return kind.from_dict(values) if fields else kind(**values)
    except InputError:
        raise
    except Exception as error:  # each configuration has checks and exceptions of its own
        raise InputError(f"`{spec}` rejects its options: {_flat(error)}") from error


def _fields(kind: Any) -> list[str]:
    named = inspect.signature(kind.__init__).parameters
    known = [name for name, p in named.items() if p.kind is not p.VAR_KEYWORD and name != "self"]
    return [*known, *getattr(kind, "attribute_map", {}), *OF_EVERY_MODEL]


def _demand(holds: bool, option: str, known: list[str], spec: str) -> None:
    if not holds:
        near = nearest(option, known)
        hint = f"did you mean `{near}`?" if near else None
        raise InputError(f"`{spec}` takes no option `{option}`", hint)


def _flat(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


# -- the user's own code -------------------------------------------------------------------------


def call_in_words(make: Callable[..., Any], given: dict[str, Any], spec: str) -> Any:
    """Call the user's own code. InputError with file and line for what it raises."""
    try:
        return make(**given)
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        raise _in_user_code(error, spec, "cannot be called") from error


def user_callable(source: str, name: str, spec: str) -> Builder:
    """The callable of a file or an installed module."""
    module = _import_file(source, spec) if source.endswith(".py") else _import_module(source, spec)
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            near = nearest(part, dir(value))
            hint = f"did you mean `{near}`?" if near else f"looked in {module.__file__}"
            raise InputError(f"`{spec}`: {source} has nothing called `{part}`", hint)
        value = getattr(value, part)
    if not callable(value):
        fact = f"`{spec}` is of type {type(value).__name__}, not a callable"
        raise InputError(fact, "name a function or a class")
    builder: Builder = value
    return builder


def _import_file(path: str, spec: str) -> ModuleType:
    file = Path(path).expanduser()
    if not file.is_file():
        raise InputError(
            f"`{spec}`: the file {path} does not exist", f"looked at {file.absolute()}"
        )
    identity = f"dcil_model_{re.sub(r'[^0-9A-Za-z]', '_', str(file.resolve().with_suffix('')))}"
    module_spec = importlib.util.spec_from_file_location(identity, file.resolve())
    assert module_spec is not None and module_spec.loader is not None  # the suffix is .py
    module = importlib.util.module_from_spec(module_spec)
    # dataclasses and pickle find a module by its name in sys.modules. With its folder in sys.path
    # the file imports its neighbours as it does under `python file.py`.
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


def _import_module(source: str, spec: str) -> ModuleType:
    if not all(part.isidentifier() for part in source.split(".")):
        near = nearest(source, SOURCES)
        hint = f"did you mean `{near}`? {FORMS}" if near else FORMS
        raise InputError(f"`{spec}`: `{source}` is not a source of models", hint)
    # Search the current folder, as `python -m` does and an installed program does not.
    sys.path.insert(0, "")
    try:
        return importlib.import_module(source)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{source}.".startswith(f"{error.name}."):
            raise _in_user_code(error, spec, "cannot be imported") from error
        near = nearest(source, SOURCES)
        hint = f"did you mean `{near}:{spec.rpartition(':')[2]}`? " if near else ""
        raise InputError(
            f"`{spec}`: the module `{error.name}` does not exist", hint + FORMS
        ) from error
    except (Exception, SystemExit) as error:
        raise _in_user_code(error, spec, "cannot be imported") from error
    finally:
        sys.path.remove("")


def _in_user_code(error: BaseException, spec: str, what: str) -> InputError:
    """An InputError for an exception of the user's code, with the innermost line of that code."""
    place: str | None
    if isinstance(error, SyntaxError) and error.filename:
        place = f"{error.filename}:{error.lineno}"
    else:
        frames = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename != __file__ and not frame.filename.startswith("<frozen")
        ]
        # The user's own line says more than that of a library which it called.
        frames = [f for f in frames if "site-packages" not in f.filename] or frames
        place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else None
    message = " ".join(str(error).split())
    fact = f"{type(error).__name__}: {message}" if message else type(error).__name__
    return InputError(f"`{spec}` {what}: {fact}", f"raised at {place}" if place else None)


# -- the call ------------------------------------------------------------------------------------


def _call(
    builder: Builder, fixed: Options, num_classes: int | None, options: Options, spec: str
) -> nn.Module:
    try:
        parameters = dict(inspect.signature(builder).parameters)
    except (TypeError, ValueError):  # a builtin without a signature
        parameters = {}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = [
        n for n, p in parameters.items() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    for option in options:
        if option in fixed:
            raise InputError(f"`{spec}`: dcil sets the option `{option}` itself", "see --weights")
        if option not in named and not takes_any:
            raise _unknown_option(option, [n for n in named if n not in fixed], spec)
    keywords = fixed | options
    if num_classes is not None and ("num_classes" in named or takes_any):
        keywords.setdefault("num_classes", num_classes)
    elif "num_classes" not in keywords and _must_have(parameters.get("num_classes")):
        raise InputError(
            f"`{spec}` requires the argument `num_classes`",
            "the recipe gives it, `model NAME { classes = 10 }`, or else the training data; "
            "where there are neither, give the parameter a default",
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
                # **kwargs that lead to a constructor without num_classes.
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
    hint = f"did you mean `{near}`?" if near else f"it takes {', '.join(named)}"
    return InputError(f"`{spec}` takes no option `{option}`", hint if near or named else None)
