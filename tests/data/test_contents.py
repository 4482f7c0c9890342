"""Whether the data of a run are still what they were."""

import shutil

import torch
from support.tar_shards import example, write_shards, write_tar

from dcil_dsl.data import Dataset, Tensors, open_dataset
from dcil_dsl.data.contents import contents_of
from dcil_dsl.training.differences import data_differences


def changes(before, after):
    return data_differences(contents_of(before), contents_of(after))


def in_memory(images, labels):
    part = Tensors(images, labels)
    return Dataset("few", part, part, ("a", "b"), (0.5,), (0.2,))


def test_one_pixel_and_one_label_in_memory_are_a_difference():
    images, labels = torch.zeros(5, 1, 4, 4, dtype=torch.uint8), torch.zeros(5, dtype=torch.long)
    before = in_memory(images.clone(), labels.clone())
    assert changes(before, in_memory(images.clone(), labels.clone())) == []
    images[4, 0, 3, 3] = 1
    pixel = changes(before, in_memory(images, labels))
    assert len(pixel) == 2 and pixel[0].startswith("train: images of 5 x 1 x 4 x 4 (")
    labels[0] = 1
    assert changes(in_memory(images, labels * 0), in_memory(images, labels)) != []


def test_a_file_more_less_or_of_another_size_is_a_difference_of_its_class(tmp_path):
    from support.image_tree import write_tree

    write_tree(tmp_path)
    before = open_dataset("imagefolder", tmp_path)
    known = contents_of(before)
    assert sorted(known) == ["train/cat", "train/dog", "val/cat", "val/dog"]
    assert changes(before, open_dataset("imagefolder", tmp_path)) == []
    shutil.copy(tmp_path / "train/cat/0.JPEG", tmp_path / "train/cat/9.JPEG")
    (line,) = data_differences(known, contents_of(open_dataset("imagefolder", tmp_path)))
    assert line.startswith("train/cat: 2 files of ") and " in the run, 3 files of " in line
    (tmp_path / "train/cat/9.JPEG").unlink()
    with open(tmp_path / "val/dog/1.JPEG", "ab") as file:
        file.write(b"\0")
    (line,) = data_differences(known, contents_of(open_dataset("imagefolder", tmp_path)))
    assert line.startswith("val/dog: ")


def test_without_sizes_no_file_is_looked_for_and_names_still_count(tmp_path, monkeypatch):
    from support.image_tree import write_tree

    write_tree(tmp_path)
    before = open_dataset("imagefolder", tmp_path)
    shutil.copy(tmp_path / "train/cat/0.JPEG", tmp_path / "train/cat/9.JPEG")
    after = open_dataset("imagefolder", tmp_path)
    monkeypatch.setattr("dcil_dsl.data.contents._size", None)
    one, other = contents_of(before, sizes=False), contents_of(after, sizes=False)
    assert one["train/cat"].startswith("2 files (") and one["val/cat"] == other["val/cat"]
    assert other["train/cat"].startswith("3 files (")


def test_a_link_to_nowhere_is_counted_and_no_fault_of_ours(tmp_path):
    from support.image_tree import write_tree

    write_tree(tmp_path)
    (tmp_path / "train/cat/7.JPEG").symlink_to(tmp_path / "nowhere")
    assert contents_of(open_dataset("imagefolder", tmp_path))["train/cat"].startswith("3 files")


def test_shards_are_reported_apart_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = write_shards(tmp_path / "shards", 3)
    before = contents_of(open_dataset("webdataset", folder))
    (folder / "train-000001.tar").unlink()
    write_tar(folder / "train-000009.tar", example(1))
    lines = data_differences(before, contents_of(open_dataset("webdataset", folder)))
    assert lines[0].startswith("train/train-000001.tar: 1 file of ")
    assert lines[0].endswith("nothing now") and "nothing in the run" in lines[1]
