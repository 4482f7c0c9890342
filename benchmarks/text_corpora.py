"""Make folders of texts from Debian's packages, as `--train ... --data FOLDER` reads them.

    python benchmarks/text_corpora.py definitions FOLDER    # apt install dict-gcide
    python benchmarks/text_corpora.py verses FOLDER         # apt install bible-kjv
    python benchmarks/text_corpora.py sentences FOLDER      # apt install dict-gcide

In:   GCIDE, an English dictionary of 1913 with additions; the King James Bible.
Out:  train and val in the folder, disjoint; tokenizer/, trained on the training part alone:
      byte-level BPE. definitions: the definition and its part of speech (.csv). verses: the verses
      in order (.txt), every tenth chapter held out. sentences: definitions alone (.jsonl), without
      a tokenizer, for a network that has its own.
Not:  nothing is downloaded.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

GCIDE = Path("/usr/share/dictd/gcide.dict.dz")
HEAD = re.compile(r"^\S[^\\]*\\.*\\,? *((?:[a-z]+\. ?){1,2})")
PARTS = {"n.": "noun", "a.": "adjective", "adv.": "adverb", "v. t.": "verb", "v. i.": "verb"}
WHOLE = re.compile(r"[A-Z][^\\\]|]*$")  # not the rest of a bracket
NUM_TRAIN, NUM_VAL = 1600, 200  # definitions of each part of speech
NUM_SENTENCES = 3200, 200
SHORTEST = 25  # characters; a shorter definition is mostly a synonym


def definitions(text: str) -> Iterator[tuple[str, str]]:
    """(the first sense of an entry, its part of speech), of the entries that have one of PARTS."""
    for entry in re.split(r"\n(?=\S)", text):
        head = HEAD.match(entry)
        part = PARTS.get(head[1].strip()) if head else None
        if head is None or part is None:
            continue
        body = re.sub(r"\[[^]]*\]", "|", entry[head.end() :])  # sources and origins of words
        senses = (" ".join(sense.split()) for sense in body.split("|"))
        senses = (re.sub(r"^(?:[\d.;,: ]|\(\w+\)|\([A-Z][\w. &]*\))+", "", s) for s in senses)
        first = next((s for s in senses if len(s) >= SHORTEST and WHOLE.match(s)), None)
        if first is not None:
            yield re.sub(r"[{}]", "", first), part


def read_gcide() -> str:
    with gzip.open(GCIDE, "rt", encoding="utf-8", errors="replace") as file:
        return file.read()


def spread(items: list[str], number: int) -> list[str]:
    """`number` of them at even distances."""
    return [items[i * len(items) // number] for i in range(number)]


def by_part(found: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    parts: dict[str, dict[str, None]] = {}
    for text, part in found:
        parts.setdefault(part, {})[text] = None  # each text once
    several = [set(texts) for texts in parts.values()]
    return {
        part: [t for t in texts if sum(t in other for other in several) == 1]
        for part, texts in parts.items()
    }


def write_definitions(folder: Path) -> None:
    rows: dict[str, list[tuple[str, str]]] = {"train": [], "val": []}
    for part, texts in by_part(definitions(read_gcide())).items():
        chosen = spread(texts, NUM_TRAIN + NUM_VAL)
        for place, text in enumerate(chosen):
            rows["val" if place % 9 == 8 else "train"].append((text, part))
    for name, own in rows.items():
        with open(folder / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("text", "label"))
            writer.writerows(sorted(own))
    save_tokenizer(folder, (text for text, _ in rows["train"]), 4000, 48)


def write_sentences(folder: Path) -> None:
    texts = list(dict.fromkeys(text for text, _ in definitions(read_gcide())))
    chosen = spread([t for t in texts if 40 <= len(t) <= 120], sum(NUM_SENTENCES))
    val = set(spread(chosen, NUM_SENTENCES[1]))
    for name, own in (("train", [t for t in chosen if t not in val]), ("val", sorted(val))):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in own)
        (folder / f"{name}.jsonl").write_text(lines)


def write_verses(folder: Path) -> None:
    printed = subprocess.run(
        ["bible", "-f", "Gen1:1-Rev22:21"], capture_output=True, text=True, check=True
    ).stdout
    chapters: dict[str, list[str]] = {}
    for line in printed.splitlines():
        place, _, verse = line.partition(" ")
        chapters.setdefault(place.partition(":")[0], []).append(verse)
    parts: dict[str, list[str]] = {"train": [], "val": []}
    for number, verses in enumerate(chapters.values()):
        parts["val" if number % 10 == 9 else "train"] += verses
    for name, verses in parts.items():
        (folder / f"{name}.txt").write_text("\n".join(verses) + "\n")
    save_tokenizer(folder, parts["train"], 1000, 64)


def save_tokenizer(folder: Path, texts: Iterable[str], num_tokens: int, length: int) -> None:
    """Train byte-level BPE: [PAD] pads, [EOS] stands between texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=num_tokens,
        special_tokens=["[PAD]", "[EOS]"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        eos_token="[EOS]",
        model_max_length=length,
    ).save_pretrained(folder / "tokenizer")


KINDS = {"definitions": write_definitions, "verses": write_verses, "sentences": write_sentences}


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a folder of texts of Debian's packages.")
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("folder", type=Path)
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    KINDS[asked.kind](asked.folder)


if __name__ == "__main__":
    main()
