"""Texts of one's own files: every format gives the same tokens, and what is wrong is located."""

import re
import sys

import pytest
import torch
from support.library import needed
from support.text_folders import SPECIAL, WORDS, labelled, save_tokenizer, text_folder, write_rows

from dcil_dsl.data import open_dataset
from dcil_dsl.data.contents import class_counts, contents_of
from dcil_dsl.data.datasets import TEXT_SUFFIXES
from dcil_dsl.data.text import read_texts
from dcil_dsl.diagnostics import InputError

needed("transformers")
needed("datasets")
NUMBER = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
PAD, EOS, UNK = range(3)


def numbers(text):
    return [NUMBER[word] for word in text.split()]


def refused(place, name="text-classification", **options):
    with pytest.raises(InputError) as error:
        open_dataset(name, place, **options)
    return f"{error.value.message}\n{error.value.help or ''}"


# -- classes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind for kind in TEXT_SUFFIXES if kind != ".txt"])
def test_labelled_texts_of_every_format_have_the_same_tokens_and_classes(tmp_path, kind):
    data = open_dataset("text-classification", text_folder(tmp_path, kind=kind))
    assert (data.task, data.classes) == ("classification", ("sea", "sun"))
    assert (data.texts.num_tokens, len(data.train), len(data.val)) == (len(NUMBER), 64, 16)
    longest = max(len(text.split()) for text, _ in labelled(64) + labelled(16, seed=1))
    for part, rows in ((data.train, labelled(64)), (data.val, labelled(16, seed=1))):
        for (inputs, label), (text, name) in zip(part, rows, strict=True):
            own = numbers(text)
            rest = [PAD] * (longest - len(own))
            assert inputs["input_ids"].tolist() == own + rest
            assert inputs["attention_mask"].tolist() == [1] * len(own) + [0] * len(rest)
            assert data.classes[label] == name


def test_labels_that_are_numbers_are_classes_in_their_order(tmp_path):
    rows = [("the sun", 10), ("the sea", 9), ("a star", 9)]
    data = open_dataset("text-classification", text_folder(tmp_path, rows, rows))
    assert data.classes == ("9", "10")
    assert class_counts(data) == (2, 1)
    assert data.notes == ("the labels 9, 10 are the classes 0 to 1, in this order",)


def test_labels_that_are_numbers_in_one_part_alone_are_names(tmp_path):
    rows = [("the sun", 1), ("the sea", "b"), ("a star", "01")]
    data = open_dataset("text-classification", text_folder(tmp_path, rows, rows[:1]))
    assert data.classes == ("01", "1", "b")
    assert data.notes == ()


def test_numbers_in_a_table_are_texts_as_they_are_written(tmp_path):
    rows = [("007", "a"), ("the", "b")]
    data = open_dataset("text-classification", text_folder(tmp_path, rows, rows))
    assert data.train[0][0]["input_ids"].tolist() == [UNK]
    assert read_texts(tmp_path, "train") == ["007", "the"]


def test_a_note_counts_tokens_that_the_tokenizer_does_not_know(tmp_path):
    rows = [("the strange sun", "a"), ("a sea", "b")]
    data = open_dataset("text-classification", text_folder(tmp_path, rows, rows[1:] + rows[1:]))
    assert data.notes == ("1 of 5 tokens of train.csv are unknown to the tokenizer",)


def test_the_mark_of_utf_8_is_no_text(tmp_path):
    folder = text_folder(tmp_path, [("the sun",)], [("a sea",)], kind=".txt")
    (folder / "train.txt").write_bytes(b"\xef\xbb\xbf" + (folder / "train.txt").read_bytes())
    assert read_texts(folder, "train") == ["the sun"]


def test_the_words_none_and_na_are_texts(tmp_path):
    rows = [("None", "a"), ("NA", "b"), ("null", "a")]
    data = open_dataset("text-classification", text_folder(tmp_path, rows, rows))
    assert data.train[1][0]["input_ids"].tolist() == [UNK]


def test_texts_are_cut_only_to_a_length_that_the_recipe_gives_and_a_note_counts_them(tmp_path):
    rows = [("the sun", "a"), ("the sun shines bright today", "b")]
    folder = text_folder(tmp_path, rows, rows, length=4)
    said = refused(folder)
    assert "train.csv, row 2: the text has 5 tokens, the tokenizer takes 4" in said
    assert "set `length` in the recipe's `data` block" in said
    data = open_dataset("text-classification", folder, length=3)
    assert data.notes == tuple(
        f"1 of 2 texts of {part}.csv are cut to 3 tokens" for part in ("train", "val")
    )
    assert data.train[1][0]["input_ids"].tolist() == numbers("the sun shines")
    assert open_dataset("text-classification", folder, length=5).notes == ()


def test_contents_change_with_a_text_and_with_the_tokenizer(tmp_path):
    rows = labelled(8)
    first = contents_of(open_dataset("text-classification", text_folder(tmp_path, rows, rows)))
    changed = [(rows[0][0] + " star", rows[0][1]), *rows[1:]]
    write_rows(tmp_path / "train.csv", changed)
    second = contents_of(open_dataset("text-classification", tmp_path))
    assert first["train"] != second["train"] and first["train"].startswith("tensors of 8 x ")


# -- running text --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TEXT_SUFFIXES)
def test_running_text_of_every_format_is_one_stream_whose_places_have_the_next_token(
    tmp_path, kind
):
    rows = [("the sun shines", "x"), ("a cold wind blows", "x")]
    data = open_dataset(
        "language-modelling", text_folder(tmp_path, rows, rows, kind=kind), length=4
    )
    stream = [*numbers("the sun shines"), EOS, *numbers("a cold wind blows"), EOS]
    assert (data.task, data.classes) == ("language-modelling", ())
    items = [(inputs["input_ids"].tolist(), following.tolist()) for inputs, following in data.train]
    assert items == [
        (stream[:4], stream[1:5]),
        (stream[4:8], stream[5:9]),
    ]


def test_the_last_piece_is_filled_with_places_that_do_not_count(tmp_path):
    rows = [("the sun shines", "x")]
    data = open_dataset("language-modelling", text_folder(tmp_path, rows, rows), length=16)
    ((inputs, following),) = data.val
    assert inputs["input_ids"].shape == following.shape == (16,)
    assert following.tolist()[:3] == [*numbers("sun shines"), EOS]
    assert set(following.tolist()[3:]) == {-100}
    assert inputs["attention_mask"].tolist() == [1] * 3 + [0] * 13


def test_the_tokenizers_own_length_is_that_of_a_piece(tmp_path):
    folder = text_folder(tmp_path, length=7)
    assert open_dataset("language-modelling", folder).texts.length == 7
    save_tokenizer(tmp_path, length=None)
    said = refused(folder, "language-modelling")
    assert "says no length of a text" in said and "set `length`" in said


def test_without_an_end_of_text_rows_follow_each_other(tmp_path):
    rows = [("the sun", "x"), ("", "x"), ("a sea", "x")]
    folder = text_folder(tmp_path, rows, rows, eos=None)
    data = open_dataset("language-modelling", folder, length=3)
    assert data.train.tensors[0].tolist() == [numbers("the sun a")]
    assert data.train.tensors[2].tolist() == [numbers("sun a sea")]


def test_an_empty_line_of_a_text_file_is_an_end_of_text_alone(tmp_path):
    rows = [("the sun",), ("",), ("a sea",)]
    data = open_dataset(
        "language-modelling", text_folder(tmp_path, rows, rows, kind=".txt"), length=6
    )
    stream = [*numbers("the sun"), EOS, EOS, *numbers("a sea"), EOS]
    assert data.train.tensors[2].tolist() == [stream[1:]]


# -- what is wrong -------------------------------------------------------------------------------

GOOD = [("the sun", "a"), ("the sea", "b")]
WRONG = {  # the file of the training part -> what is said
    "is empty": "",
    "holds no row": "text,label\n",
    "has no column `text`.*it has `txt`, `label`; did you mean `txt`": "txt,label\na,b\n",
    "has no column `label`": "text\na\n",
    "row 2: there is no text": 'text,label\na,b\n"",b\n',
    "row 2: there is no label": "text,label\na,b\nc,\n",
    "row 1: the label is '0.5'": "text,label\na,0.5\n",
    "every row has the label `a`": "text,label\nthe,a\na,a\n",
    "has the column `text` twice": "text,label,text\na,b,c\n",
    "more fields than its first line names": "text,label\na,b,c\n",
    "cannot be read: ParserError.*line 3": "text,label\na,b\na,b,c\n",
    "cannot be read: UnicodeDecodeError": b"text,label\n\xff\xfe,a\n",
}


@pytest.mark.parametrize("said", WRONG)
def test_a_wrong_table_is_refused_with_its_file_and_row(tmp_path, said, capfd):
    text_folder(tmp_path, GOOD, GOOD)
    text = WRONG[said]
    (tmp_path / "train.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    message = refused(tmp_path)
    assert str(tmp_path / "train.csv") in message
    assert re.search(said, message, re.DOTALL), message
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "kind, text, said",
    [
        (".jsonl", '{"text": "a", "label": "b"}\n{"text": \n', "ArrowInvalid: JSON parse error"),
        (".json", "[1, 2", "cannot be read"),
        (".json", '[{"text": null, "label": "b"}]', "row 1: there is no text"),
        (".parquet", "nonsense", "Parquet magic bytes not found"),
        (".txt", "a\nb\n", "has no column `label`"),
        (".jsonl", '{"text": 3, "label": "b"}\n', "row 1: the text is a int: 3"),
        (".jsonl", '{"text": "a", "label": 0.5}\n', "row 1: the label is 0.5"),
        (".tsv", 'text\tlabel\n"a\tb\nthe"\tb\n', "row 1: its `text` runs over several fields"),
    ],
)
def test_a_wrong_file_of_another_format_is_refused_too(tmp_path, kind, text, said):
    text_folder(tmp_path, GOOD, GOOD)
    (tmp_path / "train.csv").unlink()
    (tmp_path / f"train{kind}").write_text(text)
    message = refused(tmp_path)
    assert f"train{kind}" in message and said in message


def test_a_label_that_no_training_row_has_is_refused_with_the_nearest(tmp_path):
    folder = text_folder(tmp_path, [("a", "noun"), ("the", "verb")], [("a", "verb"), ("a", "nuon")])
    said = refused(folder)
    assert "val.csv, row 2: no row of train.csv has the label `nuon`" in said
    assert "did you mean `noun`?" in said


def test_two_files_of_one_part_are_refused(tmp_path):
    folder = text_folder(tmp_path)
    write_rows(folder / "train.jsonl", GOOD)
    assert "holds train.csv and train.jsonl" in refused(folder)


def test_a_tokenizer_without_a_pad_token_is_refused_for_classes_alone(tmp_path):
    folder = text_folder(tmp_path, pad=None)
    assert "has no pad token" in refused(folder)
    assert open_dataset("language-modelling", folder, length=4).train


def test_a_tokenizer_that_is_none_is_refused(tmp_path):
    folder = text_folder(tmp_path)
    for file in (folder / "tokenizer").iterdir():
        file.unlink()
    assert f"the tokenizer in {folder / 'tokenizer'} cannot be read" in refused(folder)


def test_a_folder_without_tokenizer_or_held_out_part_is_not_found(tmp_path):
    folder = text_folder(tmp_path)
    (folder / "val.csv").rename(folder / "test.csv")
    assert "the data of text-classification are missing" in refused(folder)
    said = refused(folder, "language-modelling")
    assert "train and val, each one file of .csv, .tsv" in said and "tokenizer/" in said


def test_a_text_without_a_token_and_a_part_of_one_token_are_refused(tmp_path):
    folder = text_folder(tmp_path, [("the", "a"), (" ", "b")], GOOD, eos=None)
    assert "row 2: the tokenizer makes no token of the text" in refused(folder)
    folder = text_folder(tmp_path / "more", [("the", "a")], GOOD, eos=None)
    assert "holds 1 token: too few to predict the next" in refused(folder, "language-modelling")


def test_reading_leaves_no_file_and_no_random_number_behind(tmp_path, monkeypatch):
    folder = text_folder(tmp_path / "data")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    before = sorted(path.name for path in folder.rglob("*"))
    state = torch.get_rng_state()
    open_dataset("text-classification", folder)
    assert torch.equal(state, torch.get_rng_state())
    assert sorted(path.name for path in folder.rglob("*")) == before
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("library", ["transformers", "datasets"])
def test_a_missing_library_is_named_with_the_line_that_installs_it(tmp_path, monkeypatch, library):
    folder = text_folder(tmp_path)
    monkeypatch.setitem(sys.modules, library, None)
    said = refused(folder)
    assert f"{library} is not installed" in said and "pip install 'dcil-dsl[text]'" in said
