"""Texts from files of your own: labelled ones, and running text to predict the next token of.

In:   a folder with train.* and val.* in one of TEXT_SUFFIXES, and tokenizer/ as transformers saves
      one; the length in tokens, None: the tokenizer's own.
Out:  Dataset: token numbers of one length, in memory; a note where texts were cut.
Not:  nothing is downloaded, no code of a file runs, and no row is left out.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from dcil_dsl.data.dataset import Dataset, TextSize
from dcil_dsl.data.datasets import TEXTS, texts_of
from dcil_dsl.diagnostics import InputError
from dcil_dsl.diagnostics.counting import count
from dcil_dsl.diagnostics.optional import library
from dcil_dsl.diagnostics.suggest import nearest
from dcil_dsl.words.tensors.outputs import IGNORED

datasets, transformers = library("datasets"), library("transformers")

# How `datasets` reads a file. Without keep_default_na the text "None" would be no text, and
# without converters the texts "007" and "7" would be one.
PLAIN = {"keep_default_na": False, "converters": {"text": str, "label": str}}
READERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".csv": ("from_csv", PLAIN),
    ".tsv": ("from_csv", PLAIN | {"sep": "\t"}),
    ".json": ("from_json", {}),
    ".jsonl": ("from_json", {}),
    ".parquet": ("from_parquet", {}),
    ".txt": ("from_text", {}),
}
A_REAL = re.compile(r"[-+]?(\d+\.\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)
MOST_UNKNOWN = 0.05  # share of a part's tokens, from which on a note counts them
NO_LENGTH = 10**9  # a tokenizer without a length of its own says more
HOW_LONG = "set `length` in the recipe's `data` block"


class Texts(TensorDataset):
    """Labelled texts. tensors: token numbers (N, T), 1 where there is a token (N, T), labels."""

    @property
    def labels(self) -> Tensor:
        return self.tensors[2]

    def __getitem__(self, index: int) -> Any:
        tokens, mask, label = (tensor[index] for tensor in self.tensors)
        return {"input_ids": tokens, "attention_mask": mask}, label


class Passages(TensorDataset):
    """Running text in pieces. tensors: token numbers (N, T), 1 where there is one that counts, and
    at each place the next token.
    """

    def __getitem__(self, index: int) -> Any:
        tokens, mask, following = (tensor[index] for tensor in self.tensors)
        return {"input_ids": tokens, "attention_mask": mask}, following


def text_classification(place: Path, channels: int, length: int | None = None) -> Dataset:
    """Rows with a `text` and a `label`, which is a name or a whole number.

    Classes are the labels of the training part, in order; a note lists whole numbers that are not
    0, 1, 2 and so on. Texts of more than `length` tokens are cut, and a note counts them; without a
    `length` such a text is an error. A note counts tokens that the tokenizer does not know.
    """
    tokenizer = _tokenizer(place)
    if tokenizer.pad_token is None:
        raise InputError(
            f"the tokenizer of {place} has no pad token, and texts differ in length",
            help="tokenizer.pad_token = tokenizer.eos_token, or "
            'tokenizer.add_special_tokens({"pad_token": "[PAD]"}), and save_pretrained again',
        )
    files = [_file_of(place, part) for part in ("train", "val")]
    rows = [_read(file, ("text", "label")) for file in files]
    texts = [_strings(file, own["text"]) for file, own in zip(files, rows)]
    labels = _labels(files, [own["label"] for own in rows])
    classes = sorted(set(labels[0]))
    if len(classes) == 1:
        raise InputError(f"{files[0]}: every row has the label `{classes[0]}`")
    number = {name: index for index, name in enumerate(classes)}
    for row, label in enumerate(labels[1], start=1):
        if label not in number:
            near = nearest(str(label), list(map(str, classes)))
            raise InputError(
                f"{files[1]}, row {row:,}: no row of {files[0].name} has the label `{label}`",
                help=f"did you mean `{near}`?" if near else None,
            )
    encoded, notes = [], []
    if isinstance(classes[0], int) and classes != list(range(len(classes))):
        numbers = ", ".join(map(str, classes[:10])) + (", ..." if len(classes) > 10 else "")
        notes.append(f"the labels {numbers} are the classes 0 to {len(classes) - 1}, in this order")
    for file, own in zip(files, texts):
        tokens, num_cut = _encode(tokenizer, file, own, length)
        encoded.append(tokens)
        if num_cut:
            total = count(len(tokens), "text")
            notes.append(f"{num_cut:,} of {total} of {file.name} are cut to {length} tokens")
        notes += _unknown(tokenizer, file, tokens)
    longest = max(len(tokens) for part in encoded for tokens in part)
    train, val = (
        Texts(*_padded(tokenizer, tokens, longest), torch.tensor([number[x] for x in own]))
        for tokens, own in zip(encoded, labels)
    )
    return Dataset(
        "text-classification",
        train,
        val,
        tuple(map(str, classes)),
        task="classification",
        texts=_size(tokenizer, train, val),
        notes=tuple(notes),
    )


def language_modelling(place: Path, channels: int, length: int | None = None) -> Dataset:
    """Rows with a `text`; of a .txt each line is a row. The rows of a part are one running text.

    Between rows is the tokenizer's end of text, if it has one. The text is cut into pieces of
    `length` tokens, each of which has the next token as its target.
    """
    tokenizer = _tokenizer(place)
    length = length or tokenizer.model_max_length
    if length >= NO_LENGTH:
        raise InputError(f"the tokenizer of {place} says no length of a text", help=HOW_LONG)
    files = [_file_of(place, part) for part in ("train", "val")]
    train, val = (_passages(tokenizer, file, length) for file in files)
    notes = [
        line
        for file, part in zip(files, (train, val))
        for line in _unknown(tokenizer, file, [part.tensors[2][part.tensors[1] > 0].tolist()])
    ]
    return Dataset(
        "language-modelling",
        train,
        val,
        task="language-modelling",
        texts=_size(tokenizer, train, val),
        notes=tuple(notes),
    )


def _passages(tokenizer: Any, file: Path, length: int) -> Passages:
    texts = _strings(file, _read(file, ("text",))["text"], may_be_empty=True)
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    stream: list[int] = []
    for tokens in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]:
        stream += [*tokens, *end]
    if len(stream) < 2:
        raise InputError(f"{file} holds {count(len(stream), 'token')}: too few to predict the next")
    whole = torch.tensor(stream)
    pieces = -(-(len(whole) - 1) // length)
    room = pieces * length - (len(whole) - 1)  # of the last piece, which no token follows
    pad = torch.nn.functional.pad
    tokens = pad(whole[:-1], (0, room)).view(pieces, length)
    following = pad(whole[1:], (0, room), value=IGNORED).view(pieces, length)
    return Passages(tokens, (following != IGNORED).long(), following)


def read_texts(place: Path, part: str) -> list[str]:
    """The column `text` of a part, "train" or "val", for a data set of your own."""
    file = _file_of(place, part)
    return _strings(file, _read(file, ("text",))["text"])


# -- tokens --------------------------------------------------------------------------------------


def _tokenizer(place: Path) -> Any:
    folder = place / "tokenizer"
    try:
        return transformers.AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except InputError:
        raise
    except Exception as error:  # of transformers and tokenizers: of any type
        raise InputError(
            f"the tokenizer in {folder} cannot be read: {type(error).__name__}: {_flat(error)}",
            help="a folder as `tokenizer.save_pretrained(FOLDER)` writes it",
        ) from error


def _encode(
    tokenizer: Any, file: Path, texts: list[str], length: int | None
) -> tuple[list[list[int]], int]:
    """The token numbers of each text, and how many texts were cut to `length`."""
    tokens: list[list[int]] = tokenizer(texts, verbose=False)["input_ids"]
    for row, own in enumerate(tokens, start=1):
        if not own:
            raise InputError(f"{file}, row {row:,}: the tokenizer makes no token of the text")
        if length is None and len(own) > tokenizer.model_max_length:
            raise InputError(
                f"{file}, row {row:,}: the text has {len(own):,} tokens, the tokenizer takes "
                f"{tokenizer.model_max_length:,}",
                help=f"{HOW_LONG}: longer texts are then cut",
            )
    long = [row for row, own in enumerate(tokens) if length is not None and len(own) > length]
    for row in long:  # anew, so that a token of the end of a text stays
        tokens[row] = tokenizer(texts[row], truncation=True, max_length=length)["input_ids"]
    return tokens, len(long)


def _unknown(tokenizer: Any, file: Path, texts: list[list[int]]) -> list[str]:
    """A note of the tokens that the tokenizer does not know, if they are many."""
    total = sum(map(len, texts))
    unknown = sum(own.count(tokenizer.unk_token_id) for own in texts)
    if unknown <= MOST_UNKNOWN * total:
        return []
    return [f"{unknown:,} of {count(total, 'token')} of {file.name} are unknown to the tokenizer"]


def _padded(tokenizer: Any, tokens: list[list[int]], longest: int) -> tuple[Tensor, Tensor]:
    padded = tokenizer.pad(
        {"input_ids": tokens}, padding="max_length", max_length=longest, return_tensors="pt"
    )
    return padded["input_ids"], padded["attention_mask"]


def _size(tokenizer: Any, *parts: TensorDataset) -> TextSize:
    most = max(int(part.tensors[0].max()) + 1 for part in parts)
    return TextSize(max(len(tokenizer), most), parts[0].tensors[0].shape[1])


# -- files ---------------------------------------------------------------------------------------


def _file_of(place: Path, part: str) -> Path:
    files = texts_of(place, part)
    if not files:
        raise InputError(f"{place} holds no {part} part", help=TEXTS)
    if len(files) > 1:
        names = " and ".join(file.name for file in files)
        raise InputError(f"{place} holds {names}: it is not said which is the {part} part")
    return files[0]


def _read(file: Path, columns: Sequence[str]) -> dict[str, list[Any]]:
    """The columns of a table. InputError with the file for one that cannot be read."""
    if not file.stat().st_size:
        raise InputError(f"{file} is empty")
    name, options = READERS[file.suffix]
    read = getattr(datasets.Dataset, name)
    try:
        with tempfile.TemporaryDirectory() as cache, _silent():
            table = read(str(file), cache_dir=cache, keep_in_memory=True, **options)
            found = {column: list(table[column]) for column in table.column_names}
    except InputError:
        raise
    except Exception as error:  # of pandas, pyarrow and datasets: of any type
        if "corresponds to no data" in str(error):
            raise InputError(f"{file} holds no row") from None
        cause = error.__cause__ or error
        raise InputError(
            f"{file} cannot be read: {type(cause).__name__}: {_flat(cause)}",
            help="save it as UTF-8" if isinstance(cause, UnicodeDecodeError) else None,
        ) from error
    if any(column.startswith("__index_level_") for column in found):
        raise InputError(
            f"{file}: its rows have more fields than its first line names",
            help="a text with a comma in it stands in quotes",
        )
    if file.suffix == ".tsv":
        _refuse_swallowed(file, found)
    elif file.suffix == ".txt":  # the mark of UTF-8 at the beginning of a file is not text
        found["text"][:1] = [own.removeprefix("\ufeff") for own in found["text"][:1]]
    for column in columns:
        if (
            file.suffix in (".csv", ".tsv") and f"{column}.1" in found
        ):  # as pandas names the second of two
            raise InputError(f"{file} has the column `{column}` twice")
        if column not in found:
            near = nearest(column, list(found))
            has = f"it has {', '.join(f'`{each}`' for each in found)}"
            raise InputError(
                f"{file} has no column `{column}`",
                help=f"{has}; did you mean `{near}`?" if near else has,
            )
    return found


def _refuse_swallowed(file: Path, found: dict[str, list[Any]]) -> None:
    """InputError where a quote at the start of a field has taken in fields or rows after it."""
    for column, values in found.items():
        for row, value in enumerate(values, start=1):
            if isinstance(value, str) and ("\t" in value or "\n" in value):
                raise InputError(
                    f"{file}, row {row:,}: its `{column}` runs over several fields or lines",
                    help="in a .tsv a field that begins with a quote ends at the next quote; "
                    'write `""` for a quote in quotes, or use .jsonl',
                )


def _strings(file: Path, texts: list[Any], may_be_empty: bool = False) -> list[str]:
    for row, text in enumerate(texts, start=1):
        if text is None or text == "" and not may_be_empty:
            raise InputError(f"{file}, row {row:,}: there is no text")
        if not isinstance(text, str):
            raise InputError(
                f"{file}, row {row:,}: the text is a {type(text).__name__}: {text!r:.60}"
            )
    return texts


def _labels(files: list[Path], parts: list[list[Any]]) -> list[list[Any]]:
    """The labels of both parts: whole numbers where all are, else names."""
    for file, labels in zip(files, parts):
        for row, label in enumerate(labels, start=1):
            if label is None or label == "":
                raise InputError(f"{file}, row {row:,}: there is no label")
            if not isinstance(label, (int, str)) or A_REAL.fullmatch(str(label)):
                raise InputError(
                    f"{file}, row {row:,}: the label is {label!r:.60}",
                    help="a label is a name, or a whole number without a point",
                )
    if all(_is_whole(label) for labels in parts for label in labels):
        return [list(map(int, labels)) for labels in parts]
    return [list(map(str, labels)) for labels in parts]


def _is_whole(label: object) -> bool:
    """Whether it is a whole number in its usual form: "07" may be a name."""
    return type(label) in (int, str) and re.fullmatch("0|-?[1-9][0-9]*", str(label)) is not None


@contextmanager
def _silent() -> Iterator[None]:
    """`datasets` draws a bar for each file, and logs what it also raises."""
    logger, was_drawn = logging.getLogger("datasets"), not datasets.are_progress_bars_disabled()
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if was_drawn:
            datasets.enable_progress_bars()


def _flat(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
