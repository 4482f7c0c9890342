"""Every augmentation of the language with settings, for what is tried on each of them."""

from dcil_dsl.words.augment import (
    ColorJitter,
    CutMix,
    Erase,
    Flip,
    MixUp,
    PadCrop,
    RandAugment,
    RandomResizedCrop,
    TrivialAugment,
)

WORDS = {
    word.called: word
    for word in (
        PadCrop(pixels=4),
        Flip(p=0.5),
        RandomResizedCrop(size=24),
        RandAugment(n=2, m=9),
        TrivialAugment(),
        Erase(p=0.5),
        MixUp(alpha=0.2),
        CutMix(alpha=1.0),
        ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
    )
}
