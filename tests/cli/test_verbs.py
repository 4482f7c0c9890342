"""Verbs that do not exist, and the completion of those that do."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from dcil_dsl.cli.commands import MEANT, VERBS


@pytest.mark.parametrize(
    "unknown, told",
    [
        ("chek", "did you mean `check`?"),
        ("new", "did you mean `init`?"),
        ("lint", "did you mean `check`?"),
        ("train", "`dcil compile RECIPE --model SPEC --train DATA`"),
        ("quantize", f"the verbs are {', '.join(VERBS)}"),
    ],
)
def test_an_unknown_verb_is_met_with_the_nearest_or_the_same_by_another_name(dcil, unknown, told):
    status, _, err = dcil(unknown)
    assert status == 2 and f"there is no verb `{unknown}`" in err and told in err


def test_other_names_of_verbs_lead_to_verbs_and_are_none():
    assert set(MEANT.values()) <= VERBS.keys() and not MEANT.keys() & VERBS.keys()


def completed(shell: str, words: str) -> str:
    """What the program offers to a shell for the last of some words."""
    code = "from dcil_dsl.cli.commands import main; main()"
    asked = {
        "_DCIL_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
        "_TYPER_COMPLETE_ARGS": words,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | asked, capture_output=True, text=True
    )
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_verbs_are_completed_in_every_shell(shell):
    assert "check" in completed(shell, "dcil ch")


def test_options_of_a_verb_are_completed_and_an_unknown_verb_offers_nothing():
    assert completed("bash", "dcil check --out") == "--output\n"
    assert completed("bash", "dcil chek --out") == "\n"


def test_completing_a_verb_imports_no_verb():
    code = (
        "import importlib, sys\n"
        "from typer.main import get_command\n"
        "from dcil_dsl.cli.commands import COMMAND, app\n"
        "Context = importlib.import_module(COMMAND.__module__).Context\n"
        "program = get_command(app)\n"
        "found = program.shell_complete(Context(program), 'ch')\n"
        "assert [one.value for one in found] == ['check'], found\n"
        "assert 'dcil_dsl.cli.verbs' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
