"""Example inputs: every kind of model runs on what is made for it."""

import pytest
import torch

from dcil_dsl.zoo import build_model, example_inputs

BERT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}
WHISPER = {
    "d_model": 8,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "num_mel_bins": 8,
    "max_source_positions": 6,
    "vocab_size": 50,
    "encoder_ffn_dim": 8,
    "decoder_ffn_dim": 8,
    "pad_token_id": 0,
    "decoder_start_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
CLIP = {
    f"{part}_config__{name}": value
    for part in ("text", "vision")
    for name, value in {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}.items()
} | {"vision_config__image_size": 32, "vision_config__patch_size": 16}


@pytest.mark.parametrize(
    "spec, options",
    [
        ("hf:BertForSequenceClassification", BERT),
        ("hf:BertForTokenClassification", BERT),
        ("hf:BertForQuestionAnswering", BERT),
        ("hf:BertForPreTraining", BERT),
        ("hf:WhisperForConditionalGeneration", WHISPER),
        ("hf:CLIPModel", CLIP),
    ],
)
def test_a_model_of_transformers_computes_its_loss_on_its_example(spec, options):
    model = build_model(spec, 5, options).train()
    loss = model(**example_inputs(model, labels=True).kwargs).loss
    assert loss.dim() == 0 and loss.isfinite()
    assert "labels" not in example_inputs(model).kwargs


@pytest.mark.parametrize("name", ["ssdlite320_mobilenet_v3_large", "maskrcnn_resnet50_fpn"])
def test_a_detection_model_computes_its_losses_on_its_example(name):
    options = {"min_size": 64, "max_size": 64} if "rcnn" in name else {}
    model = build_model(f"torchvision:{name}", 3, options).train()
    losses = model(*example_inputs(model, size=64, labels=True).args)
    assert all(loss.isfinite() for loss in losses.values())
    images = example_inputs(model, size=64)
    assert len(images.args) == 1 and images.args[0][0].shape == (3, 64, 64)


@pytest.mark.parametrize(
    "spec, shapes",
    [
        ("torchvision:r3d_18", [(2, 3, 16, 64, 64)]),
        ("torchvision:raft_small", [(2, 3, 128, 128)] * 2),
        ("torchvision:vit_b_16", [(2, 3, 224, 224)]),
        ("timm:test_vit", [(2, 3, 160, 160)]),
        ("dcil:resnet20", [(2, 3, 224, 224)]),
    ],
)
def test_images_have_the_shape_that_the_model_says(spec, shapes):
    size = 64 if spec.endswith("r3d_18") else None
    inputs = example_inputs(build_model(spec), size=size)
    assert [tuple(image.shape) for image in inputs.args] == shapes


def test_the_same_seed_gives_the_same_example_and_leaves_the_generator_alone():
    model = build_model("dcil:resnet20")
    before = torch.get_rng_state()
    one, other = (example_inputs(model, size=8).args[0] for _ in range(2))
    assert torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)
