"""What happens to one image before it goes into a batch, as transforms of torchvision.

In:   the augmentations of the plan, the image size it asks for, and what the images are.
Out:  one transform: uint8 CHW tensor or PIL image -> uint8 CHW tensor; None where nothing is done.
Not:  no normalisation, which the loader does on the device; no seeds, which are the loader's too.
      Augmentations of whole batches (mixup) are not built yet.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torchvision.transforms import v2

from dcil_dsl.diagnostics import InputError
from dcil_dsl.plan.plan import Augment

# The usual validation of ImageNet: the short side to 256, then the middle 224 x 224.
SHORT_SIDE = 256 / 224

Transform = Callable[[object], Tensor]


def train_transform(
    augment: tuple[Augment, ...], image_size: int | None, native: tuple[int, int] | None
) -> Transform | None:
    """The resizing of `val_transform`, then the augmentations in the plan's order.

    native  (H, W) of every image as it lies; None: they differ, so that a batch needs an
            image_size or a random_resized_crop.

    Where random_resized_crop comes first it takes the image as it lies: resized before, it would
    only be blurred. Raises InputError for a word that is not built and where no size is known.
    """
    crops_first = bool(augment) and augment[0].word == "random_resized_crop"
    steps = [] if crops_first else _resize(image_size, native)
    size = (image_size, image_size) if image_size and not crops_first else native
    for entry in augment:
        match entry.word:
            case "pad_crop":
                if size is None:
                    raise _no_size("pad_crop")
                steps.append(v2.RandomCrop(size, padding=int(entry.settings["pixels"])))
            case "flip":
                steps.append(v2.RandomHorizontalFlip(float(entry.settings.get("p", 0.5))))
            case "random_resized_crop":
                size = (int(entry.settings["size"]),) * 2
                steps.append(v2.RandomResizedCrop(size, antialias=True))
            case word:
                raise InputError(f"the augmentation `{word}` is not built yet")
    if size is None:
        raise _no_size("a batch")
    return _compose(steps, native)


def val_transform(
    augment: tuple[Augment, ...], image_size: int | None, native: tuple[int, int] | None
) -> Transform | None:
    """Images of one size: resized to image_size, if given. Of many: short side, then the middle.

    Without an image_size, images of many sizes are cut to the size that random_resized_crop
    trains on.
    """
    if image_size is None and native is None:
        sizes = [a.settings["size"] for a in augment if a.word == "random_resized_crop"]
        if not sizes:
            raise _no_size("a batch")
        image_size = int(sizes[-1])
    return _compose(_resize(image_size, native), native)


def _resize(image_size: int | None, native: tuple[int, int] | None) -> list[Callable]:
    if image_size is None or native == (image_size, image_size):
        return []
    if native is not None:
        return [v2.Resize((image_size, image_size), antialias=True)]
    short_side = round(image_size * SHORT_SIDE)
    return [v2.Resize(short_side, antialias=True), v2.CenterCrop(image_size)]


def _compose(steps: list[Callable], native: tuple[int, int] | None) -> Transform | None:
    if native is None:
        steps = [*steps, v2.PILToTensor()]  # PIL shrinks large photographs faster than tensors do
    return v2.Compose(steps) if steps else None


def _no_size(what: str) -> InputError:
    return InputError(
        f"the images differ in size, and {what} needs one size",
        "data ... { image_size = 224 } or augment = [random_resized_crop(224)] in the recipe",
    )
