"""The program `dcil`: a table of verbs, each imported when it is first used.

In:   arguments.
Out:  one verb called; an unknown one refused, with the nearest.
Not:  no verb: those of the core are in verbs.py, those of an extra in the extra.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from dcil_dsl import __version__
from dcil_dsl.cli.errors import DONE, run_program
from dcil_dsl.diagnostics.suggest import nearest

SETTINGS: dict[str, Any] = dict(
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
MANY = 15  # options, from which on `--help` has headings
# The class of click, which newer versions of typer carry inside.
COMMAND: Any = next(base for base in TyperGroup.__mro__ if base.__name__ == "Command")


class Verb(NamedTuple):
    """place: module:function. help: the line in `dcil --help`."""

    place: str
    help: str


CORE = "dcil_dsl.cli.verbs"
REPORT = "dcil_dsl.extras.report.verbs"
VERBS = {
    "compile": Verb(f"{CORE}:compile_recipe", "Compile, train, prove and export: the main job."),
    "init": Verb(f"{CORE}:init", "Write a commented recipe for a model."),
    "check": Verb(f"{CORE}:check", "Check a recipe, alone or for a model."),
    "fmt": Verb(f"{CORE}:fmt", "Rewrite recipe files in the canonical form."),
    "plan": Verb(f"{CORE}:plan", "Print what happens to each layer, and when."),
    "explain": Verb(
        f"{CORE}:explain", "Explain an error code, a word, or one layer under a recipe."
    ),
    "recipes": Verb("dcil_dsl.cli.recipes:recipes", "List the recipes that come with dcil."),
    "sensitivity": Verb(
        "dcil_dsl.extras.sensitivity.verb:sensitivity",
        "Measure how sensitive each layer is to pruning.",
    ),
    "graph": Verb(f"{CORE}:graph", "Print the compiled network as code."),
    "eval": Verb(f"{CORE}:evaluate", "Measure the accuracy of a run."),
    "verify": Verb(f"{CORE}:verify", "Prove the sparsity of a stored network, by counting zeros."),
    "export": Verb(f"{CORE}:export", "Write the network to deploy."),
    "report": Verb(f"{REPORT}:report", "Write one self-contained page about runs."),
    "runs": Verb(f"{REPORT}:runs", "List runs, the best first."),
    "compare": Verb(f"{REPORT}:compare", "Print what differs between runs."),
    "sweep": Verb(
        "dcil_dsl.extras.report.sweep_verb:sweep", "Train a recipe at several values and seeds."
    ),
    "bench": Verb(
        "dcil_dsl.extras.bench.verb:bench", "Time the exported network in several engines."
    ),
    "import": Verb(
        "dcil_dsl.extras.sparseml.verb:import_recipe",
        "Turn a recipe of SparseML into a .prune file.",
    ),
    "lsp": Verb("dcil_dsl.extras.lsp.verb:lsp", "Run the language server for editors."),
}


# What other programs call a verb: the verb that does it here.
MEANT = {
    "build": "compile",
    "convert": "export",
    "docs": "explain",
    "evaluate": "eval",
    "format": "fmt",
    "help": "explain",
    "lint": "check",
    "new": "init",
    "prove": "verify",
    "prune": "compile",
    "run": "compile",
    "show": "plan",
    "summary": "plan",
    "test": "eval",
    "train": "compile",
    "validate": "check",
}


class VerbCommand(TyperCommand):
    """One verb. The help of many options has a heading for each topic."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        topics: dict[str, list[Any]] = {}
        for one in self.get_params(ctx):
            record = one.get_help_record(ctx)
            if record is not None and one.param_type_name == "option":
                topic = getattr(one, "rich_help_panel", None) or "Options"
                topics.setdefault(topic, []).append(record)
        if sum(map(len, topics.values())) < MANY:
            super().format_options(ctx, formatter)
            return
        arguments = [one.get_help_record(ctx) for one in self.get_params(ctx)]
        named = [one for one in arguments if one and one not in sum(topics.values(), [])]
        for title, records in {"Arguments": named, **topics}.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def command_of(name: str) -> Any:
    """The command of a verb, by import."""
    module, _, function = VERBS[name].place.partition(":")
    single = typer.Typer(add_completion=False, **SETTINGS)
    work = getattr(importlib.import_module(module), function)
    single.command(name, cls=VerbCommand, short_help=VERBS[name].help)(work)
    return get_command(single)


class Commands(Mapping[str, Any]):
    """{verb: its command}, each imported when it is read."""

    def __getitem__(self, name: str) -> Any:
        return command_of(name)

    def __iter__(self) -> Iterator[str]:
        return iter(VERBS)

    def __len__(self) -> int:
        return len(VERBS)

    def __contains__(self, name: object) -> bool:
        return name in VERBS


class Program(TyperGroup):
    """All verbs; `--help` lists them without an import."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = Commands()  # type: ignore[assignment]

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in VERBS and not ctx.resilient_parsing:
            ctx.fail(f"there is no verb `{args[0]}`; {_hint(args[0])}")
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """The verbs and the options before them, without an import."""
        package = COMMAND.__module__.rpartition(".")[0]
        completion = importlib.import_module(f"{package}.shell_completion")
        verbs = [
            completion.CompletionItem(name, help=verb.help)
            for name, verb in VERBS.items()
            if name.startswith(incomplete)
        ]
        return [*verbs, *COMMAND.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.help) for name, verb in VERBS.items()])


def _hint(unknown: str) -> str:
    """What to type for a verb that is missing: the nearest, the same by another name, or all."""
    meant = MEANT.get(unknown)
    if meant == "compile":
        return "`dcil compile RECIPE --model SPEC --train DATA` prunes and trains"
    near = meant or nearest(unknown, VERBS)
    return f"did you mean `{near}`?" if near else f"the verbs are {', '.join(VERBS)}"


app = typer.Typer(
    name="dcil",
    cls=Program,
    no_args_is_help=True,
    **SETTINGS,
    help="Prune neural networks with recipes: check, compile, train, prove, export.",
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"dcil {__version__}")
        raise typer.Exit(DONE)


@app.callback()
def program(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="print the version and exit"
        ),
    ] = False,
) -> None:
    """The options before a verb."""


def main() -> None:
    """The program `dcil`."""
    run_program(lambda: app(prog_name="dcil"))


def main_compile() -> None:
    """The program `dcil-compile`: `dcil compile` under its own name."""
    if sys.argv[1:] == ["--version"]:
        print(f"dcil-compile {__version__}")
        return
    run_program(lambda: command_of("compile")(prog_name="dcil-compile"))
