"""Data sets by name: what they hold, where they are looked for, what is said when wrong."""

import ast
import gzip
import hashlib
import io
import pickle
import shlex
import struct

import numpy
import pytest
import torch
from PIL import Image
from support.image_tree import write_tree
from torchvision import datasets

from dcil_dsl.data import datasets as records
from dcil_dsl.data import open_dataset
from dcil_dsl.data.datasets import DATASETS, IDX_FILES
from dcil_dsl.data.folders import BadImage, read_image
from dcil_dsl.diagnostics import InputError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """An empty home folder, so that nothing of the machine's own is found."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("DCIL_DATA", raising=False)
    monkeypatch.setattr(records, "SYSTEM", tmp_path / "debian")
    return folder


def write_idx(folder, packed, num_train=20, num_val=10):
    """The four idx files of Fashion-MNIST, small: magic number, sizes, bytes."""
    folder.mkdir(parents=True)
    for name in IDX_FILES:
        count = num_train if name.startswith("train") else num_val
        if "images" in name:
            content = struct.pack(">4i", 2051, count, 28, 28) + bytes(count * 28 * 28 * [7])
        else:
            content = struct.pack(">2i", 2049, count) + bytes(i % 10 for i in range(count))
        file = folder / (f"{name}.gz" if packed else name)
        file.write_bytes(gzip.compress(content) if packed else content)


# -- what they hold ------------------------------------------------------------------------------


def test_digits_hold_out_360_in_equal_shares_and_always_the_same():
    first, second = open_dataset("digits"), open_dataset("digits")
    assert (len(first.train), len(first.val)) == (1437, 360)
    counts = torch.bincount(first.val.labels)
    assert counts.min() >= 34 and counts.max() <= 37
    assert torch.equal(first.val.images, second.val.images)
    image, label = first.train[0]
    assert image.dtype == torch.uint8 and image.shape == (3, 8, 8) and isinstance(label, int)
    assert first.train.images.max() == 255 and len(first.classes) == 10


def test_mean_and_std_are_those_of_the_training_images():
    digits = open_dataset("digits", channels=1)
    images = digits.train.images.double() / 255
    assert digits.mean[0] == pytest.approx(images.mean().item(), abs=1e-9)
    assert digits.std[0] == pytest.approx(images.std(unbiased=False).item(), abs=1e-9)


def test_grey_as_three_channels_costs_no_memory():
    digits = open_dataset("digits", channels=3)
    assert len(digits.mean) == len(digits.std) == 3
    assert digits.train.images.untyped_storage().nbytes() == 1437 * 64


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("inner", ["", "raw", "FashionMNIST/raw"])
def test_fashion_mnist_is_read_from_idx_files_packed_or_not(tmp_path, packed, inner):
    write_idx(tmp_path / "data" / inner, packed)
    fashion = open_dataset("fashion-mnist", tmp_path / "data", channels=1)
    assert fashion.train.images.shape == (20, 1, 28, 28) and len(fashion.val) == 10
    assert fashion.train[13][1] == 3 and fashion.train.images.unique().tolist() == [7]
    assert fashion.classes[0] == "T-shirt/top" and fashion.mean == (0.286,)


def test_a_recipes_spelling_of_fashion_mnist_is_the_same_set(tmp_path):
    write_idx(tmp_path / "data", packed=False)
    assert open_dataset("fashion_mnist", tmp_path / "data").name == "fashion-mnist"


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """CIFAR-10's layout with five times 4 and 4 images, and torchvision told their checksums."""
    root = tmp_path / "cifar"
    base = root / datasets.CIFAR10.base_folder
    base.mkdir(parents=True)

    def write(name, content):
        (base / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((base / name).read_bytes()).hexdigest()]

    pixels = (numpy.arange(4 * 3072) % 256).astype(numpy.uint8)
    batch = {"data": pixels.reshape(4, 3072), "labels": [0, 1, 2, 9]}
    train = [write(f"data_batch_{number}", batch) for number in range(1, 6)]
    val = [write("test_batch", batch)]
    meta = write("batches.meta", {"label_names": [f"c{number}" for number in range(10)]})
    monkeypatch.setattr(datasets.CIFAR10, "train_list", train)
    monkeypatch.setattr(datasets.CIFAR10, "test_list", val)
    monkeypatch.setattr(
        datasets.CIFAR10, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]}
    )
    return root


@pytest.mark.parametrize("inside", [False, True])
def test_cifar_is_read_from_its_folder_or_the_one_above(cifar, inside):
    folder = cifar / datasets.CIFAR10.base_folder if inside else cifar
    data = open_dataset("cifar10", folder)
    assert data.train.images.shape == (20, 3, 32, 32) and data.val[3][1] == 9
    assert data.train.images[0, 0, 0, :3].tolist() == [0, 1, 2]
    assert data.mean == (0.4914, 0.4822, 0.4465) and data.classes[9] == "c9"


def test_colour_is_made_grey_where_one_channel_is_asked_for(cifar):
    data = open_dataset("cifar10", cifar, channels=1)
    assert data.train.images.shape == (20, 1, 32, 32) and len(data.mean) == len(data.std) == 1
    assert data.mean[0] == pytest.approx(data.train.images.double().mean().item() / 255)


def test_a_damaged_cifar_is_reported(cifar):
    (cifar / datasets.CIFAR10.base_folder / "data_batch_2").write_bytes(b"x")
    with pytest.raises(InputError, match="incomplete or damaged"):
        open_dataset("cifar10", cifar)


def test_image_folders_give_pil_images_and_the_class_names(tmp_path):
    write_tree(tmp_path / "tree")
    data = open_dataset("imagenet", tmp_path / "tree")
    assert data.classes == ("cat", "dog") and len(data.train) == 4 and len(data.mean) == 3
    image, label = data.val[3]
    assert image.mode == "RGB" and image.size == (60, 48) and label == 1
    assert open_dataset("imagefolder", tmp_path / "tree", channels=1).train[0][0].mode == "L"


def test_synthetic_images_repeat_and_tell_their_classes_apart():
    data, again = (open_dataset("synthetic", num_train=100, num_val=50, seed=3) for _ in range(2))
    assert torch.equal(data.train.images, again.train.images)
    train, val = (part.images.float().flatten(1) for part in (data.train, data.val))
    centres = torch.stack([train[data.train.labels == c].mean(0) for c in range(10)])
    assert (torch.cdist(val, centres).argmin(1) == data.val.labels).float().mean() > 0.95


# -- where they are looked for -------------------------------------------------------------------


def test_the_given_folder_goes_before_the_environment_and_that_before_the_cache(
    tmp_path, home, monkeypatch
):
    for number, folder in enumerate((home / ".cache/dcil", tmp_path / "env", tmp_path / "arg")):
        write_tree(folder / "imagefolder", classes=[f"class{number}"])
    assert open_dataset("imagefolder").classes == ("class0",)
    monkeypatch.setenv("DCIL_DATA", str(tmp_path / "env"))
    assert open_dataset("imagefolder").classes == ("class1",)
    given = open_dataset("imagefolder", tmp_path / "arg" / "imagefolder")
    assert given.classes == ("class2",)


@pytest.mark.parametrize(
    "name", ["imagenet", "imagefolder", "cifar10", "cifar100", "fashion-mnist"]
)
def test_missing_data_say_where_what_and_how_and_leave_nothing_behind(name, tmp_path, home):
    with pytest.raises(InputError) as error:
        open_dataset(name)
    message = str(error.value)
    assert str(home / ".cache" / "dcil" / name) in message and "does not exist" in message
    assert "expected" in message and "--data DIR" in message and "DCIL_DATA" in message
    assert list(home.iterdir()) == []


def test_a_wrong_folder_is_reported_with_what_it_holds(tmp_path):
    (tmp_path / "data" / "Train").mkdir(parents=True)
    with pytest.raises(InputError, match=r"data \(holds Train\)"):
        open_dataset("imagenet", tmp_path / "data")


def test_an_archive_that_was_not_unpacked_gets_the_command(tmp_path):
    (tmp_path / "cifar-10-python.tar.gz").touch()
    with pytest.raises(InputError, match="tar -C .* -xf"):
        open_dataset("cifar10", tmp_path)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion-mnist"])
def test_the_command_that_gets_missing_data_is_one_that_a_shell_takes(name, tmp_path):
    with pytest.raises(InputError) as error:
        open_dataset(name, tmp_path)
    (line,) = [line for line in error.value.help.splitlines() if line.startswith("get it")]
    words = shlex.split(line[line.index("python -c") :])
    assert words[:2] == ["python", "-c"] and len(words) == 3
    ast.parse(words[2])


@pytest.mark.parametrize("record", DATASETS.values(), ids=list(DATASETS))
def test_a_record_says_truly_how_many_examples_of_which_size_its_data_set_has(record):
    """Those that come without a folder; the others are facts about published sets."""
    if record.files is not None:
        with pytest.raises(InputError, match=f"the data of {record.name} are missing"):
            records.require_data(record.name, None)
        return
    opened = open_dataset(record.name)
    assert len(opened.train) == record.num_train
    assert opened.task == record.task
    if record.channels:
        assert opened.train.images.shape[2:] == (record.image_size,) * 2


def test_a_folder_for_data_that_need_none_is_refused(tmp_path):
    with pytest.raises(InputError, match="the data of digits need no folder"):
        records.require_data("digits", tmp_path)


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(InputError, match="did you mean `imagenet`"):
        open_dataset("imagnet")
    with pytest.raises(InputError, match="there are digits, fashion-mnist"):
        open_dataset("svhn-extra")


def test_two_channels_and_foreign_options_are_refused():
    with pytest.raises(InputError, match="1 or 3 channels, not 2"):
        open_dataset("digits", channels=2)
    with pytest.raises(InputError, match="digits takes no option num_train"):
        open_dataset("digits", num_train=3)


# -- what is said when they are wrong ------------------------------------------------------------


def test_classes_that_differ_between_train_and_val_are_named(tmp_path):
    write_tree(tmp_path / "tree")
    (tmp_path / "tree/val/dog").rename(tmp_path / "tree/val/wolf")
    with pytest.raises(InputError) as error:
        open_dataset("imagefolder", tmp_path / "tree")
    assert "only in train: dog" in str(error.value) and "only in val: wolf" in str(error.value)


def test_an_empty_class_folder_is_named(tmp_path):
    write_tree(tmp_path / "tree")
    for file in (tmp_path / "tree/val/dog").iterdir():
        file.rename(file.with_suffix(".txt"))
    with pytest.raises(InputError, match="1 of the 2 class folders .*val holds no image\ndog"):
        open_dataset("imagefolder", tmp_path / "tree")


def test_a_val_folder_without_class_folders_is_reported(tmp_path):
    write_tree(tmp_path / "tree")
    val = tmp_path / "tree" / "val"
    for number, file in enumerate(sorted(val.glob("*/*.JPEG"))):
        file.rename(val / f"{number}.JPEG")
    for folder in ("cat", "dog"):
        (val / folder).rmdir()
    with pytest.raises(InputError, match="val holds images, but no class folders"):
        open_dataset("imagefolder", tmp_path / "tree")


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\xff\xd8\xff\xe0 cut short"])
def test_an_unreadable_image_is_named(tmp_path, content):
    write_tree(tmp_path / "tree")
    bad = tmp_path / "tree/train/cat/0.JPEG"
    bad.write_bytes(content)
    with pytest.raises(InputError, match=f"cannot read the image {bad}"):
        open_dataset("imagefolder", tmp_path / "tree").train[0]


@pytest.mark.parametrize("packed", [True, False])
def test_a_cut_idx_file_is_named(tmp_path, packed):
    write_idx(tmp_path / "data", packed)
    file = next((tmp_path / "data").glob("t10k-images*"))
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(InputError, match=f"{file} is damaged"):
        open_dataset("fashion-mnist", tmp_path / "data")


def test_idx_files_of_different_counts_do_not_belong_together(tmp_path):
    write_idx(tmp_path / "data", packed=False)
    labels = tmp_path / "data/train-labels-idx1-ubyte"
    labels.write_bytes(struct.pack(">2i", 2049, 19) + bytes(19))
    with pytest.raises(InputError, match="20 images and 19 labels"):
        open_dataset("fashion-mnist", tmp_path / "data")


def test_a_line_of_pixels_is_refused_before_it_fills_the_memory(tmp_path):
    Image.new("RGB", (1, 60_000)).save(tmp_path / "line.png")
    with pytest.raises(BadImage, match="line.png: .* 1 x 60000 pixels are not a photograph"):
        read_image(str(tmp_path / "line.png"), "RGB")


def saved(image, suffix):
    file = io.BytesIO()
    image.save(file, suffix)
    file.seek(0)
    return file


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("suffix", ["PNG", "TIFF", "PPM"])
def test_of_sixteen_bits_the_higher_eight_are_read(suffix, mode):
    image = Image.fromarray(numpy.array([[0, 255, 256], [0x8001, 0xFEFF, 0xFFFF]], numpy.uint16))
    pixels = numpy.asarray(read_image(saved(image, suffix), mode)).reshape(6, -1)
    assert pixels[:, 0].tolist() == pixels[:, -1].tolist() == [0, 0, 1, 128, 254, 255]


def test_an_image_of_floats_is_refused():
    image = Image.fromarray(numpy.zeros((4, 4), numpy.float32))
    with pytest.raises(BadImage, match="numbers of 32 bits"):
        read_image(saved(image, "TIFF"), "L")
