"""WebDataset shards: what is read, in which order, by whom; tars that are not what they seem."""

import os
import pickle
import random
import tarfile
from pathlib import Path

import pytest
import torch
from support.tar_shards import example, write_shards, write_tar

from dcil_dsl.data import Loader, open_dataset
from dcil_dsl.data.datasets import require_data
from dcil_dsl.data.folders import BadImage
from dcil_dsl.data.webdataset import make_index
from dcil_dsl.diagnostics import InputError
from dcil_dsl.words.augment import RandomResizedCrop

CROP = (RandomResizedCrop(size=8),)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def shards(tmp_path):
    return write_shards(tmp_path / "shards")


def numbers_of(loader, epoch, start=0):
    """Which pictures each batch holds, from their pixels."""
    mean, std = loader.mean[0].item(), loader.std[0].item()
    return [
        (images[:, 0, 0, 0] * std + mean).round().int().tolist()
        for images, _ in loader.epoch(epoch, start)
    ]


def load(folder, **options):
    data = open_dataset("webdataset", folder)
    return Loader(data, "train", batch_size=8, augment=CROP, **options)


def test_an_example_is_its_image_and_its_class_and_classes_are_counted(shards):
    data = open_dataset("webdataset", shards)
    assert (len(data.train), len(data.val)) == (55, 4) and data.classes == ("0", "1", "2")
    image, label = data.train[23]
    assert image.mode == "RGB" and image.size == (10, 12)
    assert image.getpixel((0, 0)) == (23, 23, 23) and label == 23 % 3
    assert open_dataset("webdataset", shards, channels=1).train[7][0].mode == "L"


def test_an_epoch_holds_every_example_once_in_an_order_of_its_own_that_repeats(shards):
    first, second = (numbers_of(load(shards), epoch) for epoch in (0, 1))
    assert sorted(sum(first, [])) == sorted(sum(second, [])) == list(range(55))
    assert first != second and first == numbers_of(load(shards), 0)
    assert first[3:] == numbers_of(load(shards), 0, start=3)
    assert first != numbers_of(load(shards, seed=1), 0)


def test_eight_shards_are_read_at_a_time(shards):
    examples = open_dataset("webdataset", shards).train
    order = examples.shuffled(torch.Generator().manual_seed(0))
    first, rest = (set((part // 5).tolist()) for part in order.split(8 * 5))
    assert (len(first), len(rest)) == (8, 3) and not first & rest
    assert (order[:40] // 5).tolist() != sorted((order[:40] // 5).tolist())


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_read_every_example_of_a_batch_once_between_them(shards, world_size):
    whole = numbers_of(load(shards), 2)
    ranks = [numbers_of(load(shards, rank=r, world_size=world_size), 2) for r in range(world_size)]
    assert [sum(shares, []) for shares in zip(*ranks)] == whole


def test_workers_read_what_one_process_reads(shards):
    loader = load(shards, workers=2)
    assert numbers_of(loader, 0, 2) == numbers_of(load(shards), 0, 2)
    loader.close()
    examples = open_dataset("webdataset", shards).train
    examples[0]  # a file is open now, and stays here
    assert pickle.loads(pickle.dumps(examples))[54][1] == 54 % 3


def test_the_index_is_made_once_and_anew_for_other_shards(shards, home, monkeypatch):
    open_dataset("webdataset", shards)
    assert len(list((home / ".cache/dcil/webdataset").glob("*.safetensors"))) == 2
    with monkeypatch.context() as patched:
        patched.setattr("dcil_dsl.data.webdataset.make_index", None)
        assert len(open_dataset("webdataset", shards).train) == 55
    write_tar(shards / "train-000000.tar", example(0))
    assert len(open_dataset("webdataset", shards).train) == 51


def test_without_a_place_for_a_cache_there_is_none(shards, home):
    home.write_text("no folder")
    assert len(open_dataset("webdataset", shards).train) == 55


def test_a_user_without_a_home_has_no_cache(shards, monkeypatch):
    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    assert len(open_dataset("webdataset", shards).train) == 55
    assert len(open_dataset("digits").train) == 1437


def test_shards_in_a_folder_whose_name_is_no_text_are_read(tmp_path):
    shards = write_shards(tmp_path / os.fsdecode(b"\xff"), 2)
    assert len(open_dataset("webdataset", shards).train) == 10


def test_shards_that_are_missing_are_reported_with_their_layout(tmp_path):
    (tmp_path / "train-000000.tar").touch()
    for find in (open_dataset, require_data):
        with pytest.raises(InputError, match="webdataset are missing") as error:
            find("webdataset", tmp_path)
        assert "train-*.tar and val-*.tar" in error.value.help


# -- tars that are not what they seem ------------------------------------------------------------


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


HOSTILE = {
    "up": ([("../../evil.png", b"x")], "leads out of it"),
    "absolute": ([("/etc/evil.png", b"x")], "leads out of it"),
    "link": ([special("a.png", tarfile.SYMTYPE, "/etc/passwd")], "not a plain file"),
    "hard link": ([special("a.png", tarfile.LNKTYPE, "/etc/passwd")], "not a plain file"),
    "device": ([special("a.png", tarfile.CHRTYPE)], "not a plain file"),
    "fifo": ([special("a.png", tarfile.FIFOTYPE)], "not a plain file"),
    "words": ([("a.png", b"x"), ("a.cls", b"cat")], "not a class number"),
    "negative": ([("a.png", b"x"), ("a.cls", b"-1")], "not a class number"),
    "huge class": ([("a.png", b"x"), ("a.cls", b"999999999999")], "not a class number"),
    "long class": ([("a.png", b"x"), ("a.cls", b"1" * 10_000)], "not a class number"),
    "no class": ([("a.png", b"x")], "without its cls: a.cls"),
    "no image": ([("a.cls", b"1")], "without its jpg: a.jpg"),
    "twice": ([("a.png", b"x"), ("a.png", b"y"), ("a.cls", b"1")], "two examples called a"),
    "empty": ([], "holds no example"),
    "other": ([("a.json", b"{}")], "holds no example"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_tar_that_is_no_shard_of_images_is_refused_by_name(tmp_path, case):
    members, reason = HOSTILE[case]
    write_tar(tmp_path / "train-0.tar", members)
    with pytest.raises(InputError, match=reason) as error:
        make_index([tmp_path / "train-0.tar"])
    assert "train-0.tar" in error.value.message
    assert [path.name for path in tmp_path.iterdir()] == ["train-0.tar"]


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("unpickled"),)


def test_nothing_in_a_tar_is_unpickled_or_run(tmp_path, monkeypatch):
    """Nor what the library of the format would unpickle, and no PostScript as an image."""
    monkeypatch.chdir(tmp_path)
    payload = pickle.dumps(Evil())
    others = [("000000.pyd", payload), ("000000.pkl", payload), ("000000.pth", payload)]
    write_tar(
        tmp_path / "train-0.tar",
        example(0)
        + others
        + [
            ("000001.png", payload),
            ("000001.cls", b"1"),
            ("000002.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"),
            ("000002.cls", b"1"),
        ],
    )
    write_tar(tmp_path / "val-0.tar", example(1))
    data = open_dataset("webdataset", tmp_path)
    assert len(data.train) == 3 and data.train[0][1] == 0
    for index in (1, 2):
        with pytest.raises(BadImage, match=f"00000{index}.* of .*train-0.tar: Unidentified"):
            data.train[index]
    assert not (tmp_path / "unpickled").exists()


def test_a_damaged_or_truncated_tar_is_read_or_refused_and_never_a_crash(tmp_path):
    whole = write_shards(tmp_path / "shards", 1, 3) / "train-000000.tar"
    content, chance = whole.read_bytes(), random.Random(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(content)
        if chance.random() < 0.3:
            del damaged[chance.randrange(len(damaged)) :]
        for _ in range(chance.randrange(1, 4)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        whole.write_bytes(damaged)
        try:
            make_index([whole])
        except InputError:
            refused += 1
    assert refused > 30


def test_examples_behind_a_damaged_header_or_a_cut_are_not_left_out_in_silence(tmp_path):
    """tarfile takes both for the end of the archive."""
    whole = write_shards(tmp_path / "shards", 1, 3) / "train-000000.tar"
    content = whole.read_bytes()
    with tarfile.open(whole) as tar:
        third = tar.getmembers()[2].offset  # of the second example's image
    for damaged, reason in (
        (content[:third] + b"?" + content[third + 1 :], f"at byte {third:,} there is no header"),
        (content[:third], "is cut off: the zeros"),
        (content[: third + 100], "is cut off: the zeros"),
    ):
        whole.write_bytes(damaged)
        with pytest.raises(InputError, match=reason):
            make_index([whole])
    whole.write_bytes(content)
    assert len(make_index([whole])["label"]) == 3


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_goes_away_during_a_run_is_named(shards, workers):
    loader = load(shards, workers=workers)
    for file in shards.glob("train-*.tar"):
        file.unlink()
    with pytest.raises(InputError, match="cannot read .*train-.*: No such file"):
        numbers_of(loader, 0)
