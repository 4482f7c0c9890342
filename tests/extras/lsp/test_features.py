"""Every feature of the server, asked by a scripted editor."""

from __future__ import annotations

import re

import pytest
from support.library import needed

from dcil_dsl.diagnostics.codes import explain
from dcil_dsl.lang import loads
from dcil_dsl.lang.fmt import format_text

needed("pytest_lsp")
t = needed("lsprotocol.types")
JsonRpcException = needed("pygls.exceptions").JsonRpcException
pytestmark = pytest.mark.asyncio(loop_scope="module")


# -- completion --------------------------------------------------------------------------------


async def test_names_of_layers_are_completed_segment_by_segment(editor, text):
    uri = editor.open(text)
    found = await editor.labels(uri, 'in "')
    assert {"layer1", "layer4", "fc"} <= found.keys() and "layer1.0" not in found
    assert found["layer1"].detail == "10 layers, 4 with weights"
    found = await editor.labels(uri, 'in "layer?.')
    assert found.keys() == {"layer?.0", "layer?.1"}
    editor.change(uri, text.replace('"layer?.0.downsample"', '"layer1.0."'), 2)
    found = await editor.labels(uri, 'in "layer1.0.')
    assert found["layer1.0.conv1"].detail == "Conv2d 64 x 64 x 3 x 3"
    assert "prune Conv2d to global(target)" in found["layer1.0.conv1"].documentation.value
    assert found["layer1.0.conv1"].text_edit.range.start == editor.at(uri, '"layer1.0.', 1)


async def test_an_unfinished_string_is_completed_too(editor, text):
    uri = editor.open(text + 'keep "layer2.1')
    assert "layer2.1" in await editor.labels(uri, 'keep "layer2.1')


@pytest.mark.parametrize(
    "before, expected, never",
    [
        ("prune ", {"Conv2d", "shortcuts", "first"}, {"to", "train"}),
        ("prune Conv2d to ", {"global", "uniform", "target"}, {"cubic", "Conv2d"}),
        ("pruning { schedule = ", {"cubic", "once"}, {"sgd", "global"}),
        ("pruning { schedule = cubic(", {"over", "initial", "warm"}, {"at"}),
        ("pruning { schedule = cubic(warm..75% run, ", {"initial", "grid"}, {"at"}),
        ("pruning { score = magnitude ", {"schedule", "refresh"}, {"score", "epochs"}),
        ("train { precision = ", {"bf16", "fp16"}, {"copy"}),
        ("train { optimizer = sgd(lr=0.1, ", {"momentum", "nesterov"}, {"lr", "betas"}),
        ("train { sync_norms = ", {"true", "false"}, {"fp32"}),
        ("mix { update ", {"kept", "pruned"}, {"sparse"}),
        ("mix { path a = masked update kept by ", {"a"}, {"kept", "masked"}),
        ("mix { path a = ", {"masked", "full", "network", "ema"}, {"magnitude"}),
        ("mix { path a = masked path b = ema(", {"a", "path", "decay"}, {"source"}),
        ("mix { path b = network(", {"source", "weights"}, {"digest"}),
        ("mix { path a = masked loss ", {"cross_entropy", "kl"}, {"masked"}),
        ("mix { path a = masked loss kl(student=", {"a"}, {"teacher"}),
        ("mix { private ", {"BatchNorm2d"}, {"path"}),
        ("mix { path a = masked deploy ", {"a"}, {"loss"}),
        ("expect { ", {"top1", "sparsity"}, {"epochs"}),
        ("data digits { augment = [", {"flip", "mixup"}, {"sgd"}),
        ("prune Conv2d where ", {"groups", "kernel_size"}, {"path"}),
        ("", {"prune", "mix", "train"}, {"path", "kept"}),
    ],
)
async def test_what_fits_a_place_is_offered_there(editor, text, before, expected, never):
    uri = editor.open(f"{text}\n{before}")
    found = await editor.labels(uri, f"\n\n{before}" if before else "}\n\n")
    assert expected <= found.keys() and not never & found.keys()


async def test_items_have_a_line_of_documentation(editor, text):
    uri = editor.open(text + "\nprune Linear to ")
    found = await editor.labels(uri, "prune Linear to ")
    assert found["global"].detail == "one threshold over all layers of the rule"
    assert found["global"].insert_text == "global($1)$0"


async def test_units_follow_a_number_and_comments_have_no_completion(editor, text):
    uri = editor.open(text.replace("epochs    = 15ep", "epochs    = 15"))
    found = await editor.labels(uri, "epochs    = 15")
    assert {"15ep", "15 steps", "15% run"} <= found.keys()
    uri = editor.open(text + "\n# prune ", "b.prune")
    assert await editor.labels(uri, "# prune ") == {}


async def test_parents_are_completed_by_the_files_of_the_folder(editor, text):
    editor.open(text, "parent.prune")
    uri = editor.open('language 1\nextends ""\n', "child.prune")
    assert set(await editor.labels(uri, 'extends "')) == {"parent.prune"}


# -- hover -------------------------------------------------------------------------------------


async def test_a_selector_shows_its_layers_their_weights_and_the_winners(editor, text):
    uri = editor.open(text)
    told = await editor.hover(uri, "Conv2d to global")
    assert "`Conv2d` matches 20 layers of torchvision:resnet18" in told
    assert "11,166,912 weights" in told
    assert "`conv1` Conv2d 64 x 3 x 7 x 7: line 13, `keep first Conv2d, shortcuts`" in told
    assert "line 12, `prune Conv2d to global(target)`" in told
    told = await editor.hover(uri, "shortcuts\n", 2)
    assert "`shortcuts` matches 3 layers" in told


async def test_a_schedule_shows_its_curve_and_its_documentation(editor, text):
    uri = editor.open(text)
    told = await editor.hover(uri, "cubic")
    assert "Zhu & Gupta" in told and "\u2588" in told and "80% |" in told and "15 epochs" in told


async def test_a_percentage_says_what_it_is_of(editor, text):
    uri = editor.open(text.replace("global(target)", "global(90%)").replace("let target = 80%", ""))
    told = await editor.hover(uri, "90%")
    assert "90% of 10,985,472 weights in 16 layers: about 9,886,925 are pruned" in told


async def test_a_time_is_told_in_steps_and_epochs(editor, text):
    uri = editor.open(text)
    assert "step 259 of 345, epoch 11.26" in await editor.hover(uri, "75% run")


@pytest.mark.parametrize(
    "word, told",
    [
        ("prune Conv2d", "prune SELECTOR to TARGET"),
        ("momentum", "`momentum`, a setting of `sgd`: a number, default 0"),
        ("kept ", "The weights that the masks keep."),
        ("masked", "w where the mask keeps it, else 0"),
        ("target) {", "let target = 80%"),
        ("sparse\n  update pruned", "path sparse = masked"),
        ("from warm", "The first moment"),
        ("epochs  ", "a setting of `train`"),
    ],
)
async def test_a_word_shows_its_documentation(editor, text, word, told):
    assert told in await editor.hover(editor.open(text), word)


async def test_an_error_and_a_code_in_a_comment_show_their_explanation(editor, text):
    uri = editor.open(text.replace("momentum", "momentun") + "# see E301\n")
    assert explain("E212") in await editor.hover(uri, "momentun")
    assert explain("E301") in await editor.hover(uri, "E301")


# -- names -------------------------------------------------------------------------------------


async def places(editor, uri, word, inside=0, declared=True):
    params = t.ReferenceParams(
        t.ReferenceContext(declared), editor.named(uri), editor.at(uri, word, inside)
    )
    found = await editor.client.text_document_references_async(params)
    return sorted((one.uri.rpartition("/")[2], one.range.start.line) for one in found)


async def defined(editor, uri, word, inside=0):
    params = t.DefinitionParams(editor.named(uri), editor.at(uri, word, inside))
    found = await editor.client.text_document_definition_async(params)
    return [(one.uri.rpartition("/")[2], one.range.start.line) for one in found]


async def test_names_lead_to_their_definitions(editor, text):
    uri = editor.open(text)
    assert await defined(editor, uri, "target)") == [("a.prune", 2)]
    assert await defined(editor, uri, "shortcuts\n\nmix") == [("a.prune", 9)]
    assert await defined(editor, uri, "sparse)\n") == [("a.prune", 15)]
    assert await defined(editor, uri, "deploy sparse", 8) == [("a.prune", 15)]
    assert await defined(editor, uri, "momentum") == []


async def test_a_name_of_a_parent_leads_to_the_parent_and_extends_to_its_file(editor, text):
    editor.open(text, "parent.prune")
    uri = editor.open('language 1\nextends "parent.prune"\nprune Linear to target\n', "b.prune")
    assert await defined(editor, uri, "target") == [("parent.prune", 2)]
    assert await defined(editor, uri, '"parent.prune"', 3) == [("parent.prune", 0)]


async def test_references_are_found_in_every_recipe_of_the_family(editor, text):
    editor.open(text, "parent.prune")
    (editor.folder / "sibling.prune").write_text(
        'language 1\nextends "parent.prune"\nlet target = 90%\n'
    )
    (editor.folder / "stranger.prune").write_text("language 1\nlet target = 5%\n")
    uri = editor.open('language 1\nextends "parent.prune"\nprune Linear to target\n', "b.prune")
    found = await places(editor, uri, "target")
    assert found == [
        ("b.prune", 2),
        ("parent.prune", 2),
        ("parent.prune", 11),
        ("sibling.prune", 2),
    ]
    assert await places(editor, uri, "target", declared=False) == [
        ("b.prune", 2),
        ("parent.prune", 11),
    ]


async def rename(editor, uri, word, new, inside=0):
    place = editor.at(uri, word, inside)
    params = t.RenameParams(editor.named(uri), place, new)
    return (await editor.client.text_document_rename_async(params)).changes


@pytest.mark.parametrize("name, new", [("target", "goal"), ("sparse", "thin"), ("shortcuts", "x")])
async def test_a_renamed_recipe_means_the_same(editor, text, name, new):
    uri = editor.open(text)
    changes = await rename(editor, uri, name, new)
    after = editor.edited(uri, list(changes[uri]))
    assert after == re.sub(rf"\b{name}\b", new, text)
    assert len(loads(after).rules) == len(loads(text).rules)


async def test_a_setting_that_is_called_like_a_let_is_not_renamed(editor, text):
    given = text.replace("let warm   = 20% run", "let momentum = 20% run").replace(
        "warm", "momentum"
    )
    uri = editor.open(given)
    after = editor.edited(uri, list((await rename(editor, uri, "momentum", "m"))[uri]))
    assert "sgd(lr=0.01, momentum=0.9)" in after and "from m\n" in after


@pytest.mark.parametrize("new", ["Goal", "train", "cubic", "sparse", "1x", ""])
async def test_a_name_that_would_mean_something_else_is_refused(editor, text, new):
    uri = editor.open(text)
    with pytest.raises(JsonRpcException):
        await rename(editor, uri, "target", new)


async def test_what_is_no_name_is_not_renamed(editor, text):
    uri = editor.open(text)
    params = t.PrepareRenameParams(editor.named(uri), editor.at(uri, "momentum"))
    assert await editor.client.text_document_prepare_rename_async(params) is None


# -- the rest ----------------------------------------------------------------------------------


async def test_the_suggestion_of_a_diagnostic_is_a_code_action(editor, text):
    uri = editor.open(text.replace("momentum", "momentun"))
    (action,) = await editor.actions(uri, "momentun")
    assert action.title == "replace `momentun` by `momentum`"
    assert editor.edited(uri, list(action.edit.changes[uri])) == text
    assert action.diagnostics[0].code == "E212"


async def test_a_sensitivity_profile_is_written_out_as_rules(editor, text):
    from support.pages import ROOT

    profile = (ROOT / "recipes/allocation/resnet20_digits.json").read_text()
    (editor.folder / "p.json").write_text(profile)
    rule = 'prune Conv2d to sensitivity(90%, profile="p.json")'
    start = text.index("prune Conv2d")
    given = text[:start] + rule + text[text.index("\nkeep  first") :].replace("from warm", "")
    uri = editor.open(given.replace("let target = 80%\nlet warm   = 20% run\n", ""))
    (action,) = await editor.actions(uri, "sensitivity")
    after = editor.edited(uri, list(action.edit.changes[uri]))
    assert "sensitivity" not in after and after.count("prune ") > 5 and "# 90" in after


async def test_formatting_is_fmt_and_leaves_a_broken_recipe_alone(editor, text):
    loose = text.replace(" = ", "=").replace("  path", "path")
    uri = editor.open(loose)
    options = t.FormattingOptions(2, True)
    params = t.DocumentFormattingParams(editor.named(uri), options)
    edits = await editor.client.text_document_formatting_async(params)
    assert editor.edited(uri, list(edits)) == format_text(loose) == text
    uri = editor.open("language 1 prune", "b.prune")
    params = t.DocumentFormattingParams(editor.named(uri), options)
    assert not await editor.client.text_document_formatting_async(params)


async def test_the_outline_has_the_statements_and_their_insides(editor, text):
    uri = editor.open(text)
    params = t.DocumentSymbolParams(editor.named(uri))
    found = await editor.client.text_document_document_symbol_async(params)
    names = {one.name: [inner.name for inner in one.children] for one in found}
    assert names["prune Conv2d to global(target)"] == ["schedule"]
    assert names["train"] == ["epochs", "optimizer"] and "path sparse = masked" in names["mix"]


async def test_blocks_and_runs_of_comments_fold(editor, text):
    uri = editor.open("# one\n# two\n" + text)
    params = t.FoldingRangeParams(editor.named(uri))
    found = await editor.client.text_document_folding_range_async(params)
    assert [(one.start_line, one.end_line) for one in found] == [(0, 1), (16, 28), (31, 33)]


async def test_semantic_tokens_tell_apart_what_a_grammar_cannot(editor, text):
    from dcil_dsl.extras.lsp.colours import TYPES

    uri = editor.open(text)
    params = t.SemanticTokensParams(editor.named(uri))
    data = (await editor.client.text_document_semantic_tokens_full_async(params)).data
    lines, line, column, kinds = text.split("\n"), 0, 0, {}
    for i in range(0, len(data), 5):
        down, right, length, kind, _ = data[i : i + 5]
        line, column = line + down, right if down else column + right
        kinds.setdefault(lines[line][column : column + length], set()).add(TYPES[kind])
    assert kinds["target"] == {"variable"} and kinds["epochs"] == {"property"}
    assert kinds["cubic"] == {"function"} and kinds["Conv2d"] == {"class"}
    assert kinds["prune"] == {"keyword"} and kinds["15ep"] == {"number"}
    assert kinds["masked"] == {"enumMember"} and kinds["sparse"] == {"variable"}


async def test_inlay_hints_say_how_many_layers_a_rule_takes_and_which_step_a_time_is(editor, text):
    uri = editor.open(text)
    whole = t.Range(t.Position(0, 0), t.Position(99, 0))
    params = t.InlayHintParams(editor.named(uri), whole)
    found = await editor.client.text_document_inlay_hint_async(params)
    assert [(one.position.line, one.label) for one in found] == [
        (3, "step 69"),
        (11, "16 layers"),
        (11, "step 259"),
        (12, "4 layers"),
    ]


async def test_hints_can_be_switched_off(start, text):
    editor = await start(hints=False)
    uri = editor.open(text)
    whole = t.Range(t.Position(0, 0), t.Position(99, 0))
    params = t.InlayHintParams(editor.named(uri), whole)
    assert not await editor.client.text_document_inlay_hint_async(params)


async def test_signature_help_marks_the_setting_that_is_written(editor, text):
    uri = editor.open(text)
    for word, active in (("cubic(", 0), ("sgd(lr=0.01, ", 1), ("kl(student=dense, teacher=", 1)):
        place = editor.at(uri, word, len(word))
        params = t.SignatureHelpParams(editor.named(uri), place)
        found = await editor.client.text_document_signature_help_async(params)
        assert found.signatures[0].label.startswith(word.partition("(")[0] + "(")
        assert found.signatures[0].active_parameter == active


async def test_the_setting_of_a_model_goes_before_the_recipes(start, text):
    editor = await start(model="torchvision:resnet18")
    uri = editor.open(text.replace('model "torchvision:resnet18"', "model another"))
    assert "torchvision:resnet18" in await editor.hover(uri, "Conv2d to global")
