"""Which model a recipe is checked against, and its table of layers from a cache.

In:   the user's settings, the `model` and `data` blocks of a recipe.
Out:  a LayerTable, made by a child process where the cache has none; or the reason.
Not:  no torch in this process. A recipe can name models of libraries alone; code of the user's own
      is run where a setting of the user names it and the editor calls the workspace trusted.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import sys
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dcil_dsl import __version__
from dcil_dsl.extras.lsp.table import LayerTable, TableError, read_table
from dcil_dsl.lang import ast

LIBRARIES = ("torchvision", "timm", "dcil", "hf")
BARE = ("dcil", "torchvision", "timm")  # where `model resnet50` is looked for, in turn
SECONDS = 300  # for a child; a model of a library takes a few
_CLASS = re.compile(r"[A-Za-z_]\w*")  # of transformers; a folder's config.json is not read
_PATH = re.compile(r"(.+\.py):\w+")


@dataclass(frozen=True)
class ServerSettings:
    """What the user sets in the editor. trusted: the editor says that the folder may run code."""

    model: str | None = None
    trusted: bool = False
    hints: bool = True

    @staticmethod
    def of(given: Any, before: ServerSettings | None = None) -> ServerSettings:
        """From what an editor sends; what it does not send stays."""
        base = before or ServerSettings()
        given = given if isinstance(given, dict) else {}
        given = given.get("dcil", given) if isinstance(given.get("dcil", given), dict) else {}
        model = given.get("model", base.model)
        return ServerSettings(
            model if isinstance(model, str) and model else None,
            base.trusted if "trusted" not in given else given["trusted"] is True,
            base.hints if "hints" not in given else given["hints"] is True,
        )


@dataclass(frozen=True)
class Wanted:
    """What a table is made of. file: the user's own code, whose changes remake it."""

    specs: tuple[str, ...]
    classes: int | None
    options: tuple[tuple[str, object], ...]
    image_size: int
    channels: int
    folder: str | None = None  # where code of the user's own is found
    file: str | None = None

    def asked(self) -> str:
        return json.dumps(
            {
                "specs": self.specs,
                "classes": self.classes,
                "options": dict(self.options),
                "image_size": self.image_size,
                "channels": self.channels,
            }
        )

    def key(self) -> str:
        """The name of the table: other versions and a changed file have another one."""
        stamp = None
        if self.file is not None:
            try:
                stat = os.stat(self.file)
                stamp = [stat.st_mtime_ns, stat.st_size]
            except OSError:
                pass
        libraries = {name: _version(name) for name in ("torch", "torchvision", "timm")}
        libraries |= {"transformers": _version("transformers"), "dcil": __version__}
        parts = [self.asked(), self.folder, self.file, stamp, libraries]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class Refused(Exception):
    """The model is not looked at, with the reason."""


def wanted_model(file: ast.File, settings: ServerSettings, root: Path | None) -> Wanted | None:
    """What the settings or the recipe say, None where both name no model.

    Raises Refused for code of the user's own that is not trusted.
    """
    blocks = {item.kind: item for item in file.items if isinstance(item, ast.BlockNode)}
    model, data = blocks.get("model"), blocks.get("data")
    given = _settings(model)
    classes = given.pop("classes", None)
    own: tuple[str | None, str | None] = (None, None)
    if settings.model is not None:
        specs: tuple[str, ...] = (settings.model,)
        if settings.model.partition(":")[0] not in LIBRARIES:
            own = _own_code(settings, root)
    elif model is not None and model.name is not None:
        found = _library_specs(model)
        if not found:
            return None
        specs = found
    else:
        return None
    sizes = _settings(data)
    size = sizes.get("image_size")
    channels = sizes.get("channels")
    options = tuple(sorted((k, v) for k, v in given.items() if _is_plain(v)))
    return Wanted(
        specs,
        classes if isinstance(classes, int) else None,
        options,
        size if isinstance(size, int) and 2 <= size <= 4096 else _crop(data) or 224,
        channels if channels in (1, 3) else 3,
        *own,
    )


def _library_specs(model: ast.BlockNode) -> tuple[str, ...]:
    name = str(model.name)
    if not model.quoted:
        return tuple(f"{library}:{name}" for library in BARE)
    library, _, rest = name.partition(":")
    if library not in LIBRARIES or library == "hf" and not _CLASS.fullmatch(rest):
        return ()
    return (name,)


def _own_code(settings: ServerSettings, root: Path | None) -> tuple[str | None, str | None]:
    if not settings.trusted:
        raise Refused(f"the model {settings.model} is code of this folder, which is not trusted")
    found = _PATH.fullmatch(settings.model or "")
    folder = str(root) if root is not None else None
    return folder, None if found is None else str((root or Path()) / found[1])


def _settings(block: ast.BlockNode | None) -> dict[str, object]:
    if block is None:
        return {}
    return {
        one.name.name: one.value.value
        for one in block.settings
        if isinstance(one.value, ast.Literal)
    }


def _is_plain(value: object) -> bool:
    return isinstance(value, (bool, int, float, str, type(None)))


def _crop(data: ast.BlockNode | None) -> int | None:
    """The side of the images that `random_resized_crop(size)` makes, or another such word."""
    for setting in data.settings if data else ():
        calls = setting.value.items if isinstance(setting.value, ast.List) else ()
        for call in calls:
            if isinstance(call, ast.Call) and "resized" in call.name.name and call.arguments:
                value = getattr(call.arguments[0].value, "value", None)
                return value if isinstance(value, int) and 2 <= value <= 4096 else None
    return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def cache_folder() -> Path:
    """The user's own cache; tables are made again where it is emptied."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "dcil" / "layers"


@dataclass
class Tables:
    """The tables of this session; each is made once, by one child at a time."""

    folder: Path = field(default_factory=cache_folder)
    known: dict[str, LayerTable | TableError] = field(default_factory=dict)
    making: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    def get(self, wanted: Wanted) -> LayerTable | TableError | None:
        """What is known now; None where a child has to make it."""
        key = wanted.key()
        if key not in self.known:
            file = self.folder / f"{key}.json"
            if not file.is_file():
                return None
            try:
                self.known[key] = read_table(file)
            except TableError:
                file.unlink(missing_ok=True)  # made again, as a damaged one is
                return None
        return self.known[key]

    async def make(self, wanted: Wanted) -> None:
        """Make the table, if nobody does already. It is known afterwards."""
        key = wanted.key()
        if key in self.known:
            return
        if key not in self.making:
            self.making[key] = asyncio.ensure_future(self._make(key, wanted))
        try:
            await asyncio.shield(self.making[key])
        finally:
            if self.making.get(key) is not None and self.making[key].done():
                del self.making[key]

    async def _make(self, key: str, wanted: Wanted) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self.known[key] = TableError(f"cannot write {self.folder}: {error.strerror}")
            return
        file = self.folder / f"{key}.json"
        # The working directory is on the child's path: an empty one, or the trusted folder.
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "dcil_dsl.extras.lsp.layer_table",
            wanted.asked(),
            str(file),
            cwd=wanted.folder or self.folder,
            env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            _, told = await asyncio.wait_for(child.communicate(), SECONDS)
        except asyncio.TimeoutError:
            child.kill()
            self.known[key] = TableError(f"the model took more than {SECONDS} s to build")
            return
        except asyncio.CancelledError:
            child.kill()
            raise
        try:
            self.known[key] = read_table(file)
        except TableError as error:
            last = told.decode(errors="replace").strip().splitlines()[-1:]
            self.known[key] = error if file.is_file() or not last else TableError(last[0])
            file.unlink(missing_ok=True)  # a failure is not kept for the next session
