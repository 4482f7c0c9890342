"""Write shards of examples as tar files."""

import io
import tarfile

import numpy
from PIL import Image


def picture(number):
    """Its upper left pixel is its number."""
    pixels = numpy.full((12, 10, 3), number, numpy.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_tar(path, members):
    """members: (name, bytes) or a TarInfo alone."""
    with tarfile.open(path, "w") as tar:
        for member in members:
            info = member
            if isinstance(member, tuple):
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
            tar.addfile(info, io.BytesIO(member[1]) if isinstance(member, tuple) else None)


def example(number, label=None):
    label = number % 3 if label is None else label
    return [(f"{number:06}.png", picture(number)), (f"{number:06}.cls", b"%d\n" % label)]


def write_shards(folder, num_shards=11, per_shard=5):
    folder.mkdir()
    for shard in range(num_shards):
        numbers = range(shard * per_shard, (shard + 1) * per_shard)
        write_tar(folder / f"train-{shard:06}.tar", sum((example(n) for n in numbers), []))
    write_tar(folder / "val-000000.tar", sum((example(n) for n in range(4)), []))
    return folder
