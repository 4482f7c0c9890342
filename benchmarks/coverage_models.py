"""The models of the coverage table, and how each is made small enough for a desk.

In:   nothing; torchvision and transformers are asked for their models, timm's are listed here.
Out:  CASES: "library/name" -> Case.
Not:  nothing is built until a case is asked to; nothing is downloaded.

Of each module of timm 1.0.31 the model with the fewest weights stands here, models named test_*
aside (`--choose-timm` of coverage.py finds them anew).
"""

from __future__ import annotations

from coverage_case import Case
from coverage_libraries import checkpointed, libraries

# -- torchvision ---------------------------------------------------------------------------------

TORCHVISION = {  # what the builders take to be smaller; None: nothing does
    "vit_b_16": Case("", {"image_size": 64}, (64,), note="64 px"),
    "vit_b_32": Case("", {"image_size": 64}, (64,), note="64 px"),
    "vit_l_16": Case("", {"image_size": 64}, (64,), note="64 px"),
    "vit_l_32": Case("", {"image_size": 64}, (64,), note="64 px"),
    "vit_h_14": Case("", {"image_size": 28}, (28,), note="28 px"),
    "inception_v3": Case("", sides=(299,), note="299 px"),
}
SMALL_BOXES = {"min_size": 128, "max_size": 128}
FEW_BOXES = {  # of 512 for an image, on which the heads would spend minutes in float64
    "rpn_post_nms_top_n_train": 32,
    "rpn_post_nms_top_n_test": 32,
    "box_batch_size_per_image": 32,
}
SIZES_OF_ITS_OWN = ("ssd300_vgg16", "ssdlite320_mobilenet_v3_large")


def _torchvision() -> dict[str, Case]:
    from torchvision import models

    def named(module, kind: str) -> dict[str, Case]:
        found = {}
        for name in models.list_models(module=module):
            case = TORCHVISION.get(name, Case(""))
            options, sides, note = dict(case.options), case.sides, case.note
            if kind == "detection":
                sides = (128,)
                if name not in SIZES_OF_ITS_OWN:
                    options |= SMALL_BOXES
                    note = "128 px"
                if "rcnn" in name:
                    options |= FEW_BOXES
                    note = "128 px, 32 boxes"
            elif kind == "segmentation":
                options["aux_loss"] = name != "lraspp_mobilenet_v3_large" or None
                options = {k: v for k, v in options.items() if v is not None}
            elif kind == "optical flow":
                sides = (128,)
            spec = f"torchvision:{name}"
            # In float64 their convolutions take many minutes. mvit has few, and rounds more.
            narrow = kind in ("detection", "video") and name != "mvit_v2_s"
            found[f"torchvision {kind}/{name}"] = Case(
                spec, options, sides, narrow=narrow, note=note
            )
        return found

    return (
        named(models, "classification")
        | named(models.detection, "detection")
        | named(models.segmentation, "segmentation")
        | named(models.video, "video")
        | named(models.optical_flow, "optical flow")
    )


# -- timm ------------------------------------------------------------------------------------------

TIMM: dict[str, str] = {
    "beit": "beit_base_patch16_224",
    "byoanet": "halonet_h1",
    "byobnet": "mobileone_s1",
    "cait": "cait_xxs24_224",
    "coat": "coat_tiny",
    "convit": "convit_tiny",
    "convmixer": "convmixer_768_32",
    "convnext": "convnext_zepto_rms",
    "cpubone": "cpubone_nano",
    "crossvit": "crossvit_tiny_240",
    "csatv2": "csatv2",
    "cspnet": "cs3darknet_focus_s",
    "cspnext": "cspnext_tiny",
    "davit": "davit_tiny",
    "deepseek_vit": "deepseek_vit_412m",
    "deit": "deit_tiny_patch16_224",
    "densenet": "densenet121",
    "dla": "dla46x_c",
    "dpn": "dpn48b",
    "edgenext": "edgenext_xx_small",
    "efficientformer": "efficientformer_l1",
    "efficientformer_v2": "efficientformerv2_s0",
    "efficientnet": "mobilenetv2_035",
    "efficientvim": "efficientvim_m1",
    "efficientvit_mit": "efficientvit_b0",
    "efficientvit_msra": "efficientvit_m0",
    "eva": "vit_tiny_patch16_dinov3_qkvb",
    "fasternet": "fasternet_t0",
    "fastvit": "fastvit_t8",
    "focalnet": "focalnet_tiny_srf",
    "gcvit": "gcvit_xxtiny",
    "gemma4_vit": "gemma4_vit_167m",
    "ghostnet": "ghostnet_050",
    "hardcorenas": "hardcorenas_b",
    "hgnet": "hgnetv2_b0",
    "hiera": "hiera_tiny_224",
    "hieradet_sam2": "sam2_hiera_tiny",
    "hrnet": "hrnet_w18_small",
    "iformer": "iformer_t",
    "inception_next": "inception_next_atto",
    "inception_resnet_v2": "inception_resnet_v2",
    "inception_v3": "inception_v3",
    "inception_v4": "inception_v4",
    "lcnetv2": "lcnetv2_small",
    "levit": "levit_128s",
    "lowformer": "lowformer_b0",
    "mambaout": "mambaout_femto",
    "maxxvit": "maxvit_pico_rw_256",
    "metaformer": "poolformerv2_s12",
    "mlp_mixer": "gmlp_ti16_224",
    "mobilenetv3": "mobilenetv3_small_050",
    "mobilenetv5": "mobilenetv5_base",
    "mobilevit": "mobilevit_xxs",
    "mvitv2": "mvitv2_tiny",
    "naflexvit": "naflexvit_base_patch16_parfac_gap",
    "nasnet": "nasnetalarge",
    "nest": "nest_tiny",
    "nextvit": "nextvit_small",
    "nfnet": "nf_regnet_b0",
    "pit": "pit_ti_224",
    "pnasnet": "pnasnet5large",
    "pvt_v2": "pvt_v2_b0",
    "qwen3_vit": "qwen3_vit_88m",
    "rdnet": "rdnet_tiny",
    "regnet": "regnetx_002",
    "repghost": "repghostnet_050",
    "repvit": "repvit_m1",
    "res2net": "res2next50",
    "resnest": "resnest14d",
    "resnet": "resnet10t",
    "resnetv2": "resnetv2_18",
    "rexnet": "rexnet_100",
    "selecsls": "selecsls42",
    "senet": "legacy_seresnet18",
    "sequencer": "sequencer2d_s",
    "shvit": "shvit_s1",
    "sknet": "skresnet18",
    "starnet": "starnet_s050",
    "swiftformer": "swiftformer_xs",
    "swin_transformer": "swin_tiny_patch4_window7_224",
    "swin_transformer_v2": "swinv2_tiny_window8_256",
    "swin_transformer_v2_cr": "swinv2_cr_tiny_224",
    "tiny_vit": "tiny_vit_5m_224",
    "tnt": "tnt_s_legacy_patch16_224",
    "tresnet": "tresnet_m",
    "twins": "twins_svt_small",
    "vgg": "vgg11",
    "visformer": "visformer_tiny",
    "vision_transformer": "vit_tiny_patch16_224",
    "vision_transformer_hybrid": "vit_tiny_r_s16_p8_224",
    "vision_transformer_relpos": "vit_srelpos_small_patch16_224",
    "vision_transformer_sam": "samvit_base_patch16_224",
    "vitamin": "vitamin_small_224",
    "volo": "volo_d1_224",
    "vovnet": "ese_vovnet19b_slim_dw",
    "xception": "legacy_xception",
    "xception_aligned": "xception41p",
    "xcit": "xcit_nano_12_p8_224",
}
TIMM_NARROW = ("naflexvit",)  # its positions are resized in float32


def _timm() -> dict[str, Case]:
    return {
        f"timm/{module}": Case(f"timm:{name}", narrow=module in TIMM_NARROW)
        for module, name in TIMM.items()
    }


# -- transformers --------------------------------------------------------------------------------

TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 120,
}
CAUSAL = TEXT | {"num_key_value_heads": 2, "max_position_embeddings": 64}
VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
}
SEQUENCES = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "vocab_size": 120,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 3,
}
SPEECH = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}


def _both(text: dict, vision: dict) -> dict:
    return {f"text_config__{k}": v for k, v in text.items()} | {
        f"vision_config__{k}": v for k, v in vision.items()
    }


TRANSFORMERS: dict[str, dict] = {
    # asked for
    "BertForSequenceClassification": TEXT,
    "BertForPreTraining": TEXT,
    "GPT2LMHeadModel": {
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "vocab_size": 120,
        "n_positions": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "LlamaForCausalLM": CAUSAL,
    "ViTForImageClassification": VISION,
    "WhisperForConditionalGeneration": SEQUENCES
    | {"num_mel_bins": 16, "max_source_positions": 20, "max_target_positions": 24},
    "CLIPModel": _both(TEXT, VISION) | {"projection_dim": 16},
    # and more
    "AlbertForSequenceClassification": TEXT | {"embedding_size": 16},
    "BartForConditionalGeneration": SEQUENCES,
    "BeitForImageClassification": VISION,
    "BloomForCausalLM": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 120},
    "ConvNextForImageClassification": {},
    "DebertaV2ForSequenceClassification": TEXT,
    "DeiTForImageClassification": VISION,
    "DistilBertForSequenceClassification": {
        "dim": 32,
        "n_layers": 2,
        "n_heads": 4,
        "hidden_dim": 48,
        "vocab_size": 120,
    },
    "Dinov2ForImageClassification": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "image_size": 32,
        "num_attention_heads": 4,
        "patch_size": 8,
    },
    "ElectraForSequenceClassification": TEXT | {"embedding_size": 16},
    "FalconForCausalLM": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 120,
    },
    "GPTNeoXForCausalLM": TEXT,
    "GemmaForCausalLM": CAUSAL | {"head_dim": 8},
    "HubertForSequenceClassification": SPEECH,
    "MambaForCausalLM": {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 120},
    "MistralForCausalLM": CAUSAL,
    "MixtralForCausalLM": CAUSAL | {"num_local_experts": 4},
    "MobileViTForImageClassification": {"image_size": 64},
    "OPTForCausalLM": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 48,
        "vocab_size": 120,
        "word_embed_proj_dim": 32,
    },
    "PhiForCausalLM": CAUSAL,
    "Qwen2ForCausalLM": CAUSAL,
    "Qwen3ForCausalLM": CAUSAL | {"head_dim": 8},
    "ResNetForImageClassification": {},
    "RobertaForMaskedLM": TEXT,
    "SegformerForImageClassification": {},
    "SiglipModel": _both(TEXT, VISION),
    "SwinForImageClassification": {"image_size": 64, "embed_dim": 24, "window_size": 2},
    "T5ForConditionalGeneration": {
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 2,
        "num_heads": 4,
        "vocab_size": 120,
        "decoder_start_token_id": 0,
    },
    "VideoMAEForVideoClassification": VISION | {"num_frames": 4},
    "Wav2Vec2ForSequenceClassification": SPEECH,
    "XLNetLMHeadModel": {
        "d_model": 32,
        "n_layer": 2,
        "n_head": 4,
        "d_inner": 48,
        "vocab_size": 120,
    },
}


NARROW = ("MambaForCausalLM",)  # its scan is cast to float32


def _transformers() -> dict[str, Case]:
    return {
        f"transformers/{name}": Case(
            f"hf:{name}", options, (None,), narrow=name in NARROW, note="small configuration"
        )
        for name, options in TRANSFORMERS.items()
    }


def all_cases() -> dict[str, Case]:
    cases = _torchvision() | _timm() | _transformers() | libraries()
    return cases | checkpointed(cases)


QUICK = (
    "torchvision classification/squeezenet1_1",
    "torchvision classification/mobilenet_v3_small",
    "torchvision classification/resnet18",
    "torchvision detection/ssdlite320_mobilenet_v3_large",
    "torchvision segmentation/lraspp_mobilenet_v3_large",
    "timm/edgenext",
    "timm/levit",
    "transformers/BertForSequenceClassification",
    "transformers/LlamaForCausalLM",
)
