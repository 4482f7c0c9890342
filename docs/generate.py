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

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

INTRODUCTION = """# Words

Every word of the language, generated from its class. A word is written with its settings in
parentheses; a setting with a default may be left out. How the words combine is described in
[rules](rules.md), [paths and losses](mix.md) and [training](training.md).
"""


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
    from dcil_dsl.lang.describe import PLACES

    parts = [INTRODUCTION]
    for place, words in own_words().items():
        heading, written = PLACES.get(place, (place.partition(" ")[2].capitalize(), None))
        parts.append(f"## {heading}\n")
        if written:
            parts.append(f"Written as `{written}`.\n")
        parts += [word_entry(word, cls) for word, cls in words.items()]
    return "\n".join(parts)


def word_entry(word: str, cls: type) -> str:
    from dcil_dsl.lang.describe import help_of_word

    told = help_of_word(cls)
    text = "\n\n".join(map(_paragraph, told.text))
    entry = f"### {word}\n\n{text}\n"
    if not told.settings:
        return entry
    # The last column is left out where no docstring says anything for it.
    last = any(one.meaning for one in told.settings)
    entry += "\n| setting | type | default |" + (" |\n|---" if last else "\n") + "|---|---|---|\n"
    for one in told.settings:
        default = "required" if one.default is None else f"`{one.default}`"
        row = f"| `{one.name}` | {one.type} | {default} |"
        entry += row + (f" {_cell(one.meaning)} |\n" if last else "\n")
    return entry


def _paragraph(text: str) -> str:
    """A paragraph as Markdown; an indented one is a formula."""
    if text.startswith("    "):
        return "```text\n" + textwrap.dedent(text) + "\n```"
    return text.replace("<", "&lt;")


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
