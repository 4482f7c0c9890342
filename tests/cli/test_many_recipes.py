"""`dcil check` and `dcil fmt` on several files, folders and standard input; reports."""

from __future__ import annotations

import json
import os
from pathlib import Path

GOOD, WRONG = Path("good.prune"), Path("wrong.prune")


def test_a_wrong_file_does_not_hide_those_after_it(dcil):
    status, out, err = dcil("check", "wrong.prune", "good.prune")
    assert (status, out) == (1, "good.prune: sound\n")
    assert "wrong.prune:20:" in err and "E212" in err


def test_an_unreadable_file_does_not_hide_those_after_it_and_is_status_2(dcil):
    status, out, err = dcil("check", "wrong.prune", "nowhere.prune", "good.prune")
    assert (status, out) == (2, "good.prune: sound\n")
    assert "E212" in err and "cannot read the recipe nowhere.prune" in err


def test_a_folder_stands_for_its_recipes_and_those_below_but_not_in_hidden_folders(dcil, here):
    for folder in ("sub/deeper", ".hidden"):
        (here / folder).mkdir(parents=True)
        (here / folder / "one.prune").write_text(GOOD.read_text())
    (here / "sub" / "notes.txt").write_text("not a recipe")
    os.symlink(here, here / "sub" / "loop")
    status, out, _ = dcil("check", ".")
    assert status == 1 and out == "good.prune: sound\nsub/deeper/one.prune: sound\n"


def test_a_file_that_is_named_twice_is_checked_once(dcil):
    assert dcil("check", "good.prune", "./good.prune", ".")[1] == "good.prune: sound\n"


def test_a_folder_without_recipes_is_a_wrong_command(dcil, here):
    (here / "empty").mkdir()
    for verb in ("check", "fmt"):
        status, _, err = dcil(verb, "empty")
        assert (status, err) == (2, "error: the folder empty holds no .prune file\n")


def test_standard_input_is_checked_and_its_parent_is_looked_for_here(dcil):
    assert dcil("check", "-", given=GOOD.read_text()) == (0, "<stdin>: sound\n", "")
    child = 'language 1\nextends "good.prune"\n'
    assert dcil("check", "-", given=child) == (0, "<stdin>: sound\n", "")
    status, _, err = dcil("check", "-", given=WRONG.read_text())
    assert status == 1 and err.startswith("<stdin>:20:")


def test_standard_input_that_is_not_utf_8_is_an_error_of_the_recipe(dcil):
    status, _, err = dcil("check", "-", given=b"language 1\n\xff")
    assert status == 1 and err.startswith("<stdin>:2:1: error[E110]")


def test_fmt_of_standard_input_writes_the_canonical_text_to_standard_output(dcil):
    loose = GOOD.read_text().replace("let target = 50%", "let   target=50%")
    assert dcil("fmt", "-", given=loose) == (0, GOOD.read_text(), "")
    status, out, _ = dcil("fmt", "--check", "-", given=loose)
    assert (status, out) == (1, "<stdin>: is not in canonical form\n")
    status, out, err = dcil("fmt", "-", given="language 1 prune")
    assert status == 1 and out == "" and "<stdin>:1:" in err


def test_fmt_rewrites_the_files_of_a_folder(dcil, here):
    (here / "sub").mkdir()
    (here / "sub" / "a.prune").write_text(GOOD.read_text().replace(" = ", "="))
    assert dcil("fmt", "sub") == (0, "sub/a.prune: put in canonical form\n", "")
    assert (here / "sub" / "a.prune").read_text() == GOOD.read_text()


def test_check_of_several_files_for_a_model_says_what_each_prunes(dcil):
    status, out, _ = dcil("check", "good.prune", "wrong.prune", "--model", "net.py:net")
    assert status == 1
    assert out == "good.prune: sound for net.py:net, prunes 2 of 2 layers\n"


# -- reports for programs ----------------------------------------------------------------------


def test_json_has_every_file_with_its_diagnostics_places_and_fixes(dcil):
    status, out, err = dcil("check", "good.prune", "wrong.prune", "gone.prune", "--output", "json")
    good, wrong, gone = json.loads(out)["files"]
    assert (status, err) == (2, "")
    assert good == {"path": "good.prune", "sound": True, "failure": None, "diagnostics": []}
    (found,) = wrong["diagnostics"]
    assert (found["code"], found["severity"]) == ("E212", "error")
    assert found["place"]["start"] == {"line": 20, "column": 27}
    assert [(fix["text"], fix["place"]) for fix in found["fixes"]] == [("momentum", found["place"])]
    assert not gone["sound"] and "gone.prune" in gone["failure"]


def test_json_of_a_recipe_with_warnings_calls_it_sound(dcil, here):
    (here / "warned.prune").write_text(GOOD.read_text() + "let unused = 1\n")
    status, out, _ = dcil("check", "warned.prune", "--output", "json")
    (file,) = json.loads(out)["files"]
    assert status == 0 and file["sound"]
    assert [one["severity"] for one in file["diagnostics"]] == ["warning"]


def test_sarif_has_the_places_the_rules_and_the_fixes(dcil):
    status, out, _ = dcil("check", "wrong.prune", "--output", "sarif")
    log = json.loads(out)
    (run,) = log["runs"]
    (result,) = run["results"]
    assert status == 1 and log["version"] == "2.1.0"
    assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == "E212" == result["ruleId"]
    place = result["locations"][0]["physicalLocation"]
    assert place["artifactLocation"] == {"uri": "wrong.prune"}
    assert place["region"] == {"startLine": 20, "startColumn": 27, "endLine": 20, "endColumn": 35}
    (change,) = result["fixes"][0]["artifactChanges"][0]["replacements"]
    assert change["insertedContent"] == {"text": "momentum"}


def test_github_gets_a_command_a_line_with_special_characters_escaped(dcil, here):
    (here / "a,b.prune").write_text(WRONG.read_text())
    status, out, _ = dcil("check", "a,b.prune", "good.prune", "--output", "github")
    assert status == 1
    assert out == (
        "::error file=a%2Cb.prune,title=dcil E212,line=20,col=27,endLine=20,endColumn=35::"
        "unknown setting `momentun` of `sgd`%0Adid you mean `momentum`?\n"
    )
    assert dcil("check", "good.prune", "--output", "github") == (0, "", "")


def test_an_unknown_form_of_the_report_is_refused_with_the_known_ones(dcil):
    status, _, err = dcil("check", "good.prune", "--output", "xml")
    assert status == 2 and "text, json, sarif, github" in err
