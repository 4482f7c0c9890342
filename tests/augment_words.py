"""Every augmentation of the language with settings, for what is tried on each of them."""

WORDS = {
    "pad_crop": {"pixels": 4}, "flip": {"p": 0.5}, "random_resized_crop": {"size": 24},
    "rand_augment": {"n": 2, "m": 9}, "trivial_augment": {}, "erase": {"p": 0.5},
    "color_jitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
    "mixup": {"alpha": 0.2}, "cutmix": {"alpha": 1.0},
}  # fmt: skip
