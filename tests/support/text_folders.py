"""Folders of texts with a tokenizer of whole words: what `--train text-classification` reads.

In:   a folder, the rows of its two parts, the ending of its files.
Out:  train.*, val.* and tokenizer/ in it.
Not:  no test.
"""

import csv
import json
import random

WORDS = "the a sun moon star sea wind shines blows sinks bright cold today".split()
SPECIAL = ["[PAD]", "[EOS]", "[UNK]"]


def labelled(count, seed=0):
    """Sentences of the sun or the sea; what they are about is their label."""
    drawn = random.Random(seed)
    rows = []
    for _ in range(count):
        label = drawn.choice(["sea", "sun"])
        other = drawn.sample([w for w in WORDS if w not in ("sea", "sun")], drawn.randint(2, 6))
        other.insert(drawn.randrange(len(other) + 1), label)
        rows.append((" ".join(other), label))
    return rows


def write_rows(file, rows, names=("text", "label")):
    """Rows of as many values as there are names, in the format of the file's ending."""
    kind = file.suffix
    if kind == ".txt":
        file.write_text("".join(f"{row[0]}\n" for row in rows))
    elif kind in (".csv", ".tsv"):
        with open(file, "w", newline="", encoding="utf-8") as opened:
            writer = csv.writer(opened, delimiter="\t" if kind == ".tsv" else ",")
            writer.writerows([names, *rows])
    else:
        items = [dict(zip(names, row)) for row in rows]
        if kind == ".json":
            file.write_text(json.dumps(items))
        elif kind == ".jsonl":
            file.write_text("".join(json.dumps(item) + "\n" for item in items))
        else:
            import pandas

            pandas.DataFrame(items).to_parquet(file)


def save_tokenizer(place, length=16, pad="[PAD]", eos="[EOS]"):
    """A number for each of SPECIAL and WORDS, in this order. Returns the number of tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    more = {} if length is None else {"model_max_length": length}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token=pad, eos_token=eos, **more
    ).save_pretrained(place / "tokenizer")
    return len(vocabulary)


def text_folder(place, train=None, val=None, kind=".csv", **more):
    """The folder, with 64 and 16 rows where none are given."""
    place.mkdir(parents=True, exist_ok=True)
    write_rows(place / f"train{kind}", train or labelled(64))
    write_rows(place / f"val{kind}", val or labelled(16, seed=1))
    save_tokenizer(place, **more)
    return place
