"""Texts of Debian's packages: what is read of an entry of a dictionary, and how parts are made."""

import csv
import json
import sys
from pathlib import Path

import pytest
from support.library import needed

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import text_corpora

ENTRIES = r"""Anchorate \An"chor*ate\, a.
   Anchor-shaped; made as an anchor is made.
   [1913 Webster]

Anchored \An"chored\, a.
   1. Held by an anchor; at anchor; held {safely}; as, an anchored
      bark.
      [1913 Webster]

   2. (Her.) Having the extremities turned back.
      [1913 Webster]

Anchoret \An"cho*ret\, Anchorite \An"cho*rite\, n. [F.
   anachorete, L. anachoreta.]
   One who renounces the world and secludes himself.
   [1913 Webster]

Abase \A*base"\, v. t. [imp. & p. p. {Abased}.]
   To lower or depress; to throw or cast down.
   [1913 Webster]

Anchor escapement \An"chor es*cape"ment\ (Horol.)
      (a) The common recoil escapement.

Thing \Thing\, n.
   A thing.
"""


def test_an_entry_gives_its_first_sense_and_its_part_of_speech():
    assert list(text_corpora.definitions(ENTRIES)) == [
        ("Anchor-shaped; made as an anchor is made.", "adjective"),
        ("Held by an anchor; at anchor; held safely; as, an anchored bark.", "adjective"),
        ("One who renounces the world and secludes himself.", "noun"),
        ("To lower or depress; to throw or cast down.", "verb"),
    ]


def test_a_text_of_two_parts_of_speech_belongs_to_none():
    found = [("a b", "noun"), ("a b", "verb"), ("c", "noun"), ("c", "noun"), ("d", "verb")]
    assert text_corpora.by_part(found) == {"noun": ["c"], "verb": ["d"]}


@pytest.fixture
def dictionary(monkeypatch):
    heads = {"n.": "A thing that is called %d.", "v. t.": "To do the thing called %d."}
    entries = [
        f"W{i} \\W\\, {part}\n   {text % i} It is the longest one."
        for i in range(40)
        for part, text in heads.items()
    ]
    monkeypatch.setattr(text_corpora, "read_gcide", lambda: "\n".join(entries))
    monkeypatch.setattr(text_corpora, "NUM_TRAIN", 24)
    monkeypatch.setattr(text_corpora, "NUM_VAL", 3)
    monkeypatch.setattr(text_corpora, "NUM_SENTENCES", (20, 6))


def test_definitions_are_balanced_disjoint_and_have_a_tokenizer(dictionary, tmp_path):
    needed("transformers")
    text_corpora.write_definitions(tmp_path)
    rows = {}
    for part in ("train", "val"):
        with open(tmp_path / f"{part}.csv", newline="") as file:
            rows[part] = list(csv.DictReader(file))
    assert [len(rows[part]) for part in ("train", "val")] == [48, 6]
    assert {sum(row["label"] == p for row in rows["train"]) for p in ("noun", "verb")} == {24}
    assert not {row["text"] for row in rows["train"]} & {row["text"] for row in rows["val"]}
    assert (tmp_path / "tokenizer" / "tokenizer.json").is_file()


def test_sentences_are_disjoint(dictionary, tmp_path):
    text_corpora.write_sentences(tmp_path)
    train, val = (
        [json.loads(line)["text"] for line in (tmp_path / f"{part}.jsonl").read_text().splitlines()]
        for part in ("train", "val")
    )
    assert (len(train), len(val)) == (20, 6) and not set(train) & set(val)
