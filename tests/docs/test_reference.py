"""The generated reference has every word, option, public name and error code of the program."""

import importlib.util
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest
from support.pages import ROOT
from typer.main import get_command

import dcil_dsl
from dcil_dsl.cli.commands import app
from dcil_dsl.diagnostics.codes import CODES
from dcil_dsl.exporting.exporters import EXPORTERS
from dcil_dsl.lang.describe import PLACES
from dcil_dsl.training.options import defaults, flags


@pytest.fixture(scope="module")
def generate():
    place = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    return module


def test_every_word_has_an_entry_with_its_settings(generate):
    page = generate.words_page()
    for place, words in generate.own_words().items():
        assert place in PLACES, place
        section = page.partition(f"## {PLACES[place][0]}\n")[2].partition("\n## ")[0]
        for word, cls in words.items():
            entry = section.partition(f"### {word}\n")[2].partition("\n### ")[0]
            names = cls.settings() if hasattr(cls, "settings") else cls.model_fields
            assert entry.strip()
            assert [name for name in names if f"| `{name}` |" not in entry] == []


def test_no_type_of_a_setting_is_shown_in_the_terms_of_python(generate):
    page = generate.words_page()
    assert not [
        word for word in ("Annotated", "Optional", "typing", "dcil_dsl.", "None:") if word in page
    ]


def test_every_option_of_every_verb_is_in_the_reference(generate):
    page = generate.cli_page()
    for name, command in get_command(app).commands.items():
        section = page.partition(f"## dcil {name}\n")[2].partition("\n## ")[0]
        options = {option for p in command.params for option in p.opts if option[:2] == "--"}
        assert [option for option in options if f"`{option}`" not in section] == []


def test_every_export_format_is_in_the_reference_with_its_help(generate):
    page = generate.cli_page()
    section = page.partition("## dcil export\n")[2].partition("\n## ")[0]
    assert [e.name for e in EXPORTERS.values() if f"{e.name}: {e.help}" not in section] == []


def test_every_field_of_run_options_is_in_the_reference_with_its_flag_and_default(generate):
    page = generate.python_page()
    for name, flag in flags().items():
        off = f" / `{flag.off}`" if flag.off else ""
        assert f"| `{name}` | `{flag.name}`{off} | `{defaults()[name]!r}` |" in page


def test_the_help_of_an_option_names_what_it_needs_and_excludes(generate):
    page = generate.cli_page()
    assert re.search(r"`--compile-mode` `MODE` \|[^|]*; needs --compile \|", page)
    assert re.search(r"`--compile` / `--no-compile` \|[^|]*; not with --checkpoint-act", page)
    assert re.search(r"`--checkpoint-activations` \|[^|]*; not with --compile \|", page)


def test_every_public_function_and_class_is_in_the_reference(generate):
    page = generate.python_page()
    for name in set(dcil_dsl.__all__) - {"__version__", "export"}:
        assert f".{getattr(dcil_dsl, name).__name__}\n" in page


def test_every_error_code_is_in_the_reference_with_its_examples(generate):
    page = generate.errors_page()
    for code in CODES.values():
        assert f"## {code.code}: {code.title}\n" in page
        assert code.wrong in page and code.right in page


@pytest.mark.skipif(find_spec("mkdocstrings") is None, reason="the extra `docs`; see .ci/run")
def test_the_site_builds_with_warnings_as_errors(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    subprocess.run([*command, "-f", str(ROOT / "docs" / "mkdocs.yml")], check=True, cwd=tmp_path)
    pages = {str(page.relative_to(tmp_path)) for page in tmp_path.rglob("*.html")}
    assert {"index.html", "tutorial.html", "language/words.html", "tour.html"} <= pages
