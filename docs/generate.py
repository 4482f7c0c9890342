"""Write the reference pages that the program itself knows: words, options, verbs, error codes.

    python docs/generate.py DIR     writes the pages into DIR; mkdocs calls `pages` by hooks.py

In:   the classes of the words, the command line, the public names, the table of error codes.
Out:  Markdown by the path of each page.
Not:  no sentence about a word that its docstring does not say.
"""

import inspect
import re
import sys
import textwrap
from pathlib import Path

from pydantic_core import PydanticUndefined

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

INTRODUCTION = """# Words

Every word of the language, generated from its class. A word is written with its settings in
parentheses; a setting with a default may be left out. How the words combine is described in
[rules](rules.md), [paths and losses](mix.md) and [training](training.md).
"""
HEADINGS = {  # place of a word -> the heading and where it is written
    "a target": ("Targets", "prune SELECTOR to WORD"),
    "a bound": ("Bounds", "bounds = [WORD]"),
    "a granularity": ("Granularities", "granularity = WORD"),
    "a score": ("Scores", "score = WORD"),
    "a schedule": ("Schedules", "schedule = WORD"),
    "a penalty": ("Penalties", "penalty = [WORD]"),
    "a parametrisation": ("Parametrisations", "param = WORD"),
    "a way to grow": ("Regrowth", "regrow = WORD"),
    "a view": ("Views", "path NAME = WORD"),
    "a loss": ("Losses", "loss WORD"),
    "a weighting of classes": ("Class weights", "classes=WORD, in kl"),
    "an optimizer": ("Optimizers", "optimizer = WORD"),
    "a learning rate over time": ("Learning rates", "lr = WORD"),
    "a group of weights": ("Groups of weights", "groups = [WORD]"),
    "a rule that ends the run": ("Early stopping", "stop = WORD"),
    "an integrator": ("Integrators", "integrator = WORD"),
    "an average of weights": ("Averages of weights", "average = WORD"),
    "a balance of losses": ("Balances of losses", "balance = WORD"),
    "an augmentation": ("Augmentations", "augment = [WORD]"),
}


def pages() -> dict[str, str]:
    return {
        "language/words.md": words_page(),
        "reference/cli.md": cli_page(),
        "reference/python.md": python_page(),
        "reference/errors.md": errors_page(),
    }


# -- words -------------------------------------------------------------------------------------


def own_words() -> dict[str, dict[str, type]]:
    """{place: {word: class}} of the language's own words."""
    from dcil_dsl.words.registry import own_words

    return own_words()


def words_page() -> str:
    parts = [INTRODUCTION]
    for place, words in own_words().items():
        heading, written = HEADINGS.get(place, (place.partition(" ")[2].capitalize(), None))
        parts.append(f"## {heading}\n")
        if written:
            parts.append(f"Written as `{written}`.\n")
        parts += [word_entry(word, cls) for word, cls in words.items()]
    return "\n".join(parts)


def word_entry(word: str, cls: type) -> str:
    names = cls.settings() if hasattr(cls, "settings") else tuple(cls.model_fields)
    fields = set(cls.model_fields)
    text, said = _read(inspect.cleandoc(cls.__doc__ or ""), fields)
    for parent in cls.__mro__[1:]:  # a setting of a kind is described where it is defined
        if parent.__module__.startswith("dcil_dsl."):
            said = _read(inspect.cleandoc(parent.__doc__ or ""), fields)[1] | said
    entry = f"### {word}\n\n{text}\n"
    if not names:
        return entry
    # The last column is left out where no docstring says anything for it.
    last = any(said.get(name) for name in names)
    entry += "\n| setting | type | default |" + (" |\n|---" if last else "\n") + "|---|---|---|\n"
    for name in names:
        field = cls.model_fields[name]
        required = field.default is PydanticUndefined
        default = "required" if required else f"`{_value(field.default)}`"
        row = f"| `{name}` | {_type(field)} | {default} |"
        entry += row + (f" {_cell(said.get(name))} |\n" if last else "\n")
    return entry


def _read(text: str, settings: set[str]) -> tuple[str, dict[str, str]]:
    """A docstring as Markdown, and what its lines `name   meaning` say about settings."""
    kept, said, last = [], {}, None
    for line in re.sub(r"(?<!`)\bNone\b(?!`)", "`none`", text).split("\n"):
        name, gap, meaning = (re.match(r"(\w*)(\s*)(.*)", line)).groups()
        if name in settings and (len(gap) > 1 or last):
            said[name], last = meaning, name
        elif last and not name and meaning:
            said[last] += f" {meaning}"
        else:
            kept.append(line)
            last = None
    parts = []
    for paragraph in re.split(r"\n\s*\n", "\n".join(kept)):
        lines = [line for line in paragraph.split("\n") if line]
        if lines and len(parts) and all(line.startswith(" ") for line in lines):
            parts.append("```text\n" + textwrap.dedent("\n".join(lines)) + "\n```")
        else:
            parts.append(" ".join(line.strip() for line in lines).replace("<", "&lt;"))
    return "\n\n".join(part for part in parts if part), said


def _value(value: object) -> str:
    """A default as a recipe writes it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_value, value))}]"
    if hasattr(value, "fraction"):
        return f"{100 * value.fraction:g}%"
    if hasattr(value, "unit"):
        number = 100 * value.value if value.unit == "run" else value.value
        return {"run": "{:g}% run", "epochs": "{:g}ep"}.get(value.unit, "{:g} steps").format(number)
    if isinstance(value, str):
        return value
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)


def _type(field) -> str:
    """The type of a setting in the words of the language."""
    text = str(getattr(field.annotation, "__name__", field.annotation))
    if "|" in str(field.annotation) or "[" in str(field.annotation):
        text = str(field.annotation)
    choices = re.search(r"Literal\[([^\]]+)\]", text)
    if choices:
        return " or ".join(f"`{choice.strip()[1:-1]}`" for choice in choices[1].split(","))
    marks = {mark for mark in field.metadata if isinstance(mark, str)}
    if marks & {"path", "layers"}:
        return "a path" if "path" in marks else "a name of layers"
    for name, words in (
        ("Percent", "a percentage"),
        ("Range", "a range of times"),
        ("Time", "a time"),
        ("bool", "`true` or `false`"),
        ("int", "an integer"),
        ("float", "a number"),
        ("str", "a string"),
        ("Granularity|Single", "a granularity"),
        ("Balanced", "class weights"),
    ):
        if re.search(rf"\b({name})\b", text):
            many = "tuple" in text or "list" in text
            return f"a list: {words}" if many else words
    return f"`{text}`".replace("|", "or")


# -- the command line --------------------------------------------------------------------------


def cli_page() -> str:
    from typer.main import get_command

    from dcil_dsl.cli.commands import app

    parts = [
        "# Command line\n\nGenerated from the program. `dcil-compile` is `dcil compile` under a "
        "name of its own; `python -m dcil_dsl` is `dcil`.\n\n"
        "| exit status | meaning |\n|---|---|\n"
        "| 0 | done |\n"
        "| 1 | the recipe is wrong, or the result does not hold what the recipe asks |\n"
        "| 2 | the command, the model or the data is wrong or missing |\n"
        "| 70 | a fault of dcil, with the traceback |\n"
        "| 130 | interrupted; `--resume` continues |\n"
    ]
    for name, command in get_command(app).commands.items():
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        options = [p for p in command.params if p.param_type_name == "option"]
        usage = " ".join(["dcil", name, *(a.metavar or a.name.upper() for a in arguments)])
        parts.append(f"## dcil {name}\n\n{inspect.cleandoc(command.help or '')}\n")
        parts.append(f"```text\n{usage} [OPTIONS]\n```\n")
        rows = [
            f"| `{a.metavar or a.name.upper()}` | {_cell(getattr(a, 'help', ''))} |"
            for a in arguments
        ]
        rows += [f"| {_flags(option)} | {_cell(option.help)} |" for option in options]
        parts.append("| argument or option | |\n|---|---|\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def _flags(option) -> str:
    flags = [f"`{flag}`" for flag in (*option.opts, *option.secondary_opts) if flag != "--help"]
    value = "" if option.is_flag else f" `{option.metavar or option.name.upper()}`"
    return " / ".join(flags or ["`--help`"]) + value


def _cell(text: str | None) -> str:
    return re.sub(r"\s+", " ", text or "").replace("|", r"\|").replace("<", "&lt;")


# -- Python ------------------------------------------------------------------------------------


def python_page() -> str:
    """The public names. griffe reads the source, and does not see what is imported at first use."""
    import dcil_dsl
    from dcil_dsl.training.options import RunOptions

    parts = [
        "# Python\n\n`import dcil_dsl as dcil` gives the names below; each is imported when it is "
        "first used. The command line is a thin layer over these functions.\n"
    ]
    for name in dcil_dsl.__all__:
        value = getattr(dcil_dsl, name)
        if name.startswith("_") or inspect.ismodule(value):
            continue
        module = inspect.getmodule(value).__name__
        parts.append(f"::: {module}.{value.__name__}\n")
        if value is RunOptions:
            parts.append(options_table())
    return "\n".join(parts)


def options_table() -> str:
    """The fields of RunOptions, which are keywords of `dcil.train` and flags of the program."""
    from dcil_dsl.training.options import defaults, flags, help_of

    rows = [
        f"| `{name}` | {_named(flag)} | `{defaults()[name]!r}` | {_cell(help_of(name))} |"
        for name, flag in flags().items()
    ]
    return "| field | flag | default | |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"


def _named(flag) -> str:
    return " / ".join(f"`{name}`" for name in (flag.name, flag.off) if name)


# -- error codes -------------------------------------------------------------------------------


def errors_page() -> str:
    from dcil_dsl.diagnostics.codes import CODES

    parts = [
        "# Error codes\n\nGenerated from the program; `dcil explain CODE` prints the same. "
        "E1xx are about the text, E2xx about the recipe alone, E3xx about the recipe and the "
        "model, E4xx about the model's graph; W is a warning.\n"
    ]
    known = CODES.values() if isinstance(CODES, dict) else CODES
    for code in known:
        parts.append(f"## {code.code}: {code.title}\n\n{inspect.cleandoc(code.meaning)}\n")
        for label, example in (("Wrong", code.wrong), ("Right", code.right)):
            if example:
                parts.append(f"{label}:\n\n```text\n{example}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    for path, text in pages().items():
        file = Path(sys.argv[1]) / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
