"""The architectures of the zoo: a table of networks with random weights, small enough for a gradient each in about a second.

Every entry builds a classifier that returns logits only, and makes a seeded batch for it. Nothing is downloaded.
"""

import importlib
from dataclasses import dataclass
from typing import Callable

import timm
import torch
import torchvision
import transformers
from timm.models import metaformer, mlp_mixer, mvitv2, nfnet
from torch import nn

import zoo_plain as plain

CLASSES = 10


@dataclass
class Network:
    """How to build a network and a batch of its inputs: arrays by the name that the ONNX file gives them."""

    source: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int, torch.Generator], dict]


def image(size, channels=3):
    """Makes batches of random images; a number is the side of a square."""
    shape = (size, size) if isinstance(size, int) else size
    return lambda batch, generator: {"x": torch.randn(batch, channels, *shape, generator=generator)}


def array(*shape):
    """Makes batches of random arrays of this shape."""
    return lambda batch, generator: {"x": torch.randn(batch, *shape, generator=generator)}


def tokens(length=16, vocabulary=100, mask=True, padded=True):
    """Makes batches of random token sequences, with masks, of different lengths if `padded`."""

    def make(batch, generator):
        ids = {"input_ids": torch.randint(3, vocabulary, (batch, length), generator=generator)}
        kept = length - torch.arange(batch) % 4 * (length // 6) * padded
        return ids | ({"attention_mask": (torch.arange(length) < kept[:, None]).long()} if mask else {})

    return make


class Logits(nn.Module):
    """Calls a transformers model by argument names and returns its logits."""

    def __init__(self, model, names=("input_ids", "attention_mask")):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, first, second=None):
        return self.model(**dict(zip(self.names, (first, second))), return_dict=True).logits


class Pooled(nn.Module):
    """A classifier over the mean of a transformers encoder's states."""

    def __init__(self, model, width, names=("input_ids", "attention_mask")):
        super().__init__()
        self.model, self.names = model, names
        self.head = nn.Linear(width, CLASSES)

    def forward(self, first, second=None):
        states = self.model(**dict(zip(self.names, (first, second))), return_dict=True).last_hidden_state
        return self.head(states.mean(1))


def vision(name, size=64, **options):
    """A torchvision classifier."""

    def build():
        return getattr(torchvision.models, name)(weights=None, num_classes=CLASSES, **options)

    return Network("torchvision", build, image(size))


def timm_(name, size=64, fused=True, **options):
    """A timm classifier; one that is not `fused` writes its attention out, where the TorchScript exporter cannot."""

    def build():
        timm.layers.set_fused_attn(fused)
        return timm.create_model(name, num_classes=CLASSES, **options)

    return Network("timm", build, image(size))


def text(kind, length=16, mask=True, padded=True, head="ForSequenceClassification", **options):
    """A sequence classifier of transformers, from a configuration of its kind."""

    def build():
        config = getattr(transformers, f"{kind}Config")(**options)
        config.num_labels = CLASSES
        config.pad_token_id = 0
        config._attn_implementation = "eager"
        names = ("input_ids", "attention_mask") if mask else ("input_ids",)
        if head.endswith("Model"):
            model = getattr(transformers, f"{kind}{head}")(config)
            return Pooled(model, getattr(config, "hidden_size", None) or config.d_model, names)
        return Logits(getattr(transformers, f"{kind}{head}")(config), names)

    return Network("transformers", build, tokens(length, mask=mask, padded=padded))


def picture(kind, size=32, **options):
    """An image classifier of transformers, from a configuration of its kind."""

    def build():
        config = getattr(transformers, f"{kind}Config")(**options)
        config.num_labels = CLASSES
        config._attn_implementation = "eager"
        return Logits(getattr(transformers, f"{kind}ForImageClassification")(config), ("pixel_values",))

    return Network("transformers", build, image(size))


def sound(kind):
    """A sequence classifier of transformers over sound."""
    still = ("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout", "layerdrop", "final_dropout")

    def build():
        config = getattr(transformers, f"{kind}Config")(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, conv_dim=(16, 16),
            conv_kernel=(10, 3), conv_stride=(5, 2), num_feat_extract_layers=2, num_conv_pos_embeddings=8,
            num_conv_pos_embedding_groups=4, classifier_proj_size=16, apply_spec_augment=False, num_labels=CLASSES,
            **dict.fromkeys(still, 0.0),
        )
        config._attn_implementation = "eager"
        return Logits(getattr(transformers, f"{kind}ForSequenceClassification")(config), ("input_values",))

    return Network("transformers", build, array(400))


def headless(name, size, width):
    """A torchvision network whose large fully connected layers make way for one on averaged features."""

    def build():
        network = getattr(torchvision.models, name)(weights=None)
        network.avgpool, network.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(width, CLASSES)
        return network

    return Network("torchvision", build, image(size))


def timm_class(name, size, **options):
    """A class of timm.models with its own arguments."""
    module, kind = name.split(".")
    family = importlib.import_module(f"timm.models.{module}")
    return Network("timm", lambda: getattr(family, kind)(num_classes=CLASSES, **options), image(size))


def vision_model(name, size, *arguments):
    """A class of torchvision.models with its own arguments."""
    return Network("torchvision", lambda: getattr(torchvision.models, name)(*arguments, num_classes=CLASSES), image(size))


def resnext(groups, width, layers):
    """A small ResNeXt of torchvision."""
    family = torchvision.models.resnet
    options = {"groups": groups, "width_per_group": width, "num_classes": CLASSES}
    return Network("torchvision", lambda: family.ResNet(family.Bottleneck, layers, **options), image(64))


def regnet(squeeze):
    """A small RegNet of torchvision, with squeeze-and-excitation or without."""
    family = torchvision.models.regnet

    def build():
        blocks = family.BlockParams.from_init_params(8, 24, 24.48, 2.54, 8, se_ratio=squeeze)
        return family.RegNet(blocks, num_classes=CLASSES)

    return Network("torchvision", build, image(64))


def swin(name, version):
    """A small Swin transformer of torchvision."""
    family = torchvision.models.swin_transformer

    def build():
        return getattr(family, name)(
            [4, 4], 24, [2, 2], [2, 4], [4, 4], stochastic_depth_prob=0.0, num_classes=CLASSES,
            block=getattr(family, f"SwinTransformerBlock{version}"), downsample_layer=getattr(family, f"PatchMerging{version}"),
        )

    return Network("torchvision", build, image(32))


def own(build, *shape):
    """A network written for the zoo."""
    return Network("torch", build, array(*shape))


SMALL_TEXT = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
BERT = {**SMALL_TEXT, "intermediate_size": 64, "max_position_embeddings": 40}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
LLAMA = {**BERT, "num_key_value_heads": 2, "attention_dropout": 0.0}
XLM = {"vocab_size": 100, "emb_dim": 32, "n_layers": 2, "n_heads": 4, "dropout": 0.0, "attention_dropout": 0.0}
XLM |= {"max_position_embeddings": 40, "summary_first_dropout": 0.0}
T5 = {"vocab_size": 100, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}
VIT = {**BERT, **STILL, "image_size": 32, "patch_size": 8}
VIT = {k: v for k, v in VIT.items() if k not in ("vocab_size", "max_position_embeddings")}

NETWORKS = {
    # torch
    "text_cnn": Network("torch", plain.TextCnn, lambda n, g: {"ids": torch.randint(100, (n, 12), generator=g)}),
    "cnn_1d": own(plain.Cnn1d, 4, 48),
    "cnn_3d": own(plain.Cnn3d, 2, 8, 12, 12),
    "cnn_2plus1d": own(plain.Squeeze3d, 3, 6, 16, 16),
    "lstm": own(lambda: plain.Recurrent(nn.LSTM), 8, 6),
    "lstm_deep": own(lambda: plain.Recurrent(nn.LSTM, True, 2), 8, 6),
    "gru": own(lambda: plain.Recurrent(nn.GRU), 8, 6),
    "gru_bidirectional": own(lambda: plain.Recurrent(nn.GRU, True), 8, 6),
    "rnn": own(lambda: plain.Recurrent(nn.RNN, nonlinearity="relu"), 8, 6),
    "lstm_long": own(lambda: plain.Recurrent(nn.LSTM, width=128), 100, 6),
    "gru_long": own(lambda: plain.Recurrent(nn.GRU, width=128), 100, 6),
    "rnn_long": own(lambda: plain.Recurrent(nn.RNN, width=128), 100, 6),
    "gru_cell": own(plain.Cell, 6, 6),
    "tcn": own(plain.Tcn, 4, 24),
    "point_net": own(plain.PointNet, 3, 20),
    "mlp_mixer": own(plain.MlpMixer, 3, 32, 32),
    "capsules": own(plain.Capsules, 1, 28, 28),
    "scatter": own(plain.Scatter, 12, 5),
    "graph_convolution": own(plain.GraphConvolution, 9, 5),
    "u_net": own(plain.UNet, 3, 16, 16),
    "upsample_nearest": own(lambda: plain.Upsample("nearest"), 3, 16, 16),
    "upsample_bilinear": own(lambda: plain.Upsample("bilinear"), 3, 16, 16),
    "upsample_bicubic": own(lambda: plain.Upsample("bicubic"), 3, 16, 16),
    "spatial_transformer": own(plain.SpatialTransformer, 1, 24, 24),
    "highway_maxout": own(plain.Highway, 20),
    "experts": own(plain.Experts, 12),
    "memory": own(plain.Memory, 8, 6),
    "cosine": own(plain.Cosine, 20),
    "prototypes": own(plain.Prototypes, 12),
    "pixel_shuffle": own(plain.PixelShuffle, 3, 12, 12),
    "tied": own(plain.Tied, 16),
    "ensemble": own(plain.Ensemble, 20),
    # transformers, text
    "bert": text("Bert", **BERT, **STILL),
    "roberta": text("Roberta", **BERT, **STILL, type_vocab_size=1),
    "albert": text("Albert", **BERT, **STILL, embedding_size=16, classifier_dropout_prob=0.0),
    "electra": text("Electra", **BERT, **STILL, embedding_size=16),
    "distilbert": text(
        "DistilBert", vocab_size=100, dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=40,
        dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0,
    ),
    "mpnet": text("MPNet", **BERT, **STILL),
    "deberta": text("Deberta", **BERT, **STILL, relative_attention=True, pos_att_type=["c2p", "p2c"], pooler_dropout=0.0),
    "deberta_v2": text(
        "DebertaV2", **BERT, **STILL, relative_attention=True, pos_att_type=["c2p", "p2c"], position_buckets=8,
        norm_rel_ebd="layer_norm", share_att_key=True, pooler_dropout=0.0,
    ),
    "xlnet": text("XLNet", vocab_size=100, d_model=32, n_layer=2, n_head=4, d_inner=64, dropout=0.0, summary_last_dropout=0.0),
    "funnel": text(
        "Funnel", vocab_size=100, block_sizes=[1, 1], d_model=32, n_head=4, d_head=8, d_inner=64, hidden_dropout=0.0,
        attention_dropout=0.0, activation_dropout=0.0, num_decoder_layers=1,
    ),
    "mobilebert": text("MobileBert", **BERT, **STILL, embedding_size=16, intra_bottleneck_size=16, true_hidden_size=16),
    "squeezebert": text("SqueezeBert", **BERT, **STILL, embedding_size=32, q_groups=2, k_groups=2, v_groups=2),
    "roformer": text("RoFormer", **BERT, **STILL, embedding_size=32),
    "convbert": text("ConvBert", **BERT, **STILL, embedding_size=16),
    "fnet": text("FNet", mask=False, **BERT, hidden_dropout_prob=0.0),
    "ibert": text("IBert", **BERT, **STILL),
    "rembert": text("RemBert", **BERT, **STILL, input_embedding_size=16, classifier_dropout_prob=0.0),
    "canine": text("Canine", 32, **BERT, **STILL, num_hash_functions=2, num_hash_buckets=64, local_transformer_stride=16, downsampling_rate=4),
    "longformer": text("Longformer", 16, **BERT, **STILL, attention_window=4),
    "bigbird": text("BigBird", 16, **BERT, **STILL, attention_type="original_full"),
    "luke": text("Luke", head="Model", **BERT, **STILL, entity_vocab_size=20, entity_emb_size=16),
    "xlm": text("XLM", **XLM),
    "flaubert": text("Flaubert", **XLM),
    "modernbert": text(
        "ModernBert", padded=False, **BERT, embedding_dropout=0.0, mlp_dropout=0.0, attention_dropout=0.0, classifier_dropout=0.0,
        local_attention=8, global_attn_every_n_layers=2,
    ),
    "gpt2": text(
        "GPT2", vocab_size=100, n_embd=32, n_layer=2, n_head=4, n_positions=40, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0,
    ),
    "gpt_neo": text(
        "GPTNeo", vocab_size=100, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]],
        max_position_embeddings=40, window_size=4, embed_dropout=0.0, resid_dropout=0.0, attention_dropout=0.0,
    ),
    "gpt_neox": text("GPTNeoX", **BERT, attention_dropout=0.0, hidden_dropout=0.0),
    "gptj": text("GPTJ", vocab_size=100, n_embd=32, n_layer=2, n_head=4, n_positions=40, rotary_dim=4, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
    "codegen_phi": text("Phi", **BERT, resid_pdrop=0.0, attention_dropout=0.0),
    "opt": text(
        "OPT", vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=64,
        max_position_embeddings=40, dropout=0.0, word_embed_proj_dim=16,
    ),
    "llama": text("Llama", **LLAMA),
    "mistral": text("Mistral", padded=False, **LLAMA, sliding_window=6),
    "mixtral": text("Mixtral", **LLAMA, num_local_experts=4),
    "qwen2": text("Qwen2", **LLAMA),
    "qwen3": text("Qwen3", **LLAMA, head_dim=8),
    "gemma": text("Gemma", **LLAMA, head_dim=8),
    "gemma2": text("Gemma2", padded=False, **LLAMA, head_dim=8, sliding_window=6, query_pre_attn_scalar=8),
    "falcon": text("Falcon", **SMALL_TEXT, alibi=True, new_decoder_architecture=False),
    "bloom": text("Bloom", vocab_size=100, hidden_size=32, n_layer=2, n_head=4, hidden_dropout=0.0, attention_dropout=0.0),
    "t5_encoder": text("T5", head="EncoderModel", **T5),
    "umt5_encoder": text("UMT5", head="EncoderModel", **T5, feed_forward_proj="gated-gelu"),
    "mamba": text("Mamba", mask=False, head="Model", vocab_size=100, hidden_size=16, num_hidden_layers=2, state_size=4),
    "rwkv": text("Rwkv", 8, mask=False, head="Model", vocab_size=100, hidden_size=16, num_hidden_layers=2, context_length=16),
    # transformers, images and sound
    "hf_vit": picture("ViT", **VIT),
    "hf_deit": picture("DeiT", **VIT),
    "hf_beit": picture("Beit", **VIT, use_relative_position_bias=True),
    "hf_data2vec": picture("Data2VecVision", **VIT, use_shared_relative_position_bias=True),
    "hf_dinov2": picture("Dinov2", **VIT, use_swiglu_ffn=True),
    "hf_ijepa": picture("IJepa", **VIT),
    "hf_vit_msn": picture("ViTMSN", **VIT),
    "hf_segformer": picture("Segformer", 64, hidden_sizes=[16, 24, 32, 48], depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 2, 4], hidden_dropout_prob=0.0, drop_path_rate=0.0, classifier_dropout_prob=0.0),
    "hf_van": picture("PoolFormer", 64, hidden_sizes=[16, 24, 32, 48], depths=[1, 1, 1, 1], drop_path_rate=0.0),
    "hf_bit": picture("Bit", 64, embedding_size=16, hidden_sizes=[32, 32, 64, 64], depths=[1, 1, 1, 1], num_groups=8),
    "hf_levit": picture("Levit", 64, image_size=64, hidden_sizes=[32, 48, 64], num_attention_heads=[2, 3, 4], depths=[1, 1, 1], key_dim=[8, 8, 8]),
    "hf_focalnet": picture("FocalNet", 64, image_size=64, embed_dim=16, hidden_sizes=[16, 32, 64, 96], depths=[1, 1, 1, 1], drop_path_rate=0.0),
    "hf_swin": picture("Swin", 32, image_size=32, patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4, drop_path_rate=0.0),
    "hf_mobilenet_v1": picture("MobileNetV1", 64, image_size=64, depth_multiplier=0.25, classifier_dropout_prob=0.0),
    "hf_textnet": picture("TextNet", 64),
    "hf_wav2vec2": sound("Wav2Vec2"),
    "hf_hubert": sound("Hubert"),
    # torchvision
    "alexnet": headless("alexnet", 64, 256),
    "resnet18": vision("resnet18"),
    "resnet_bottleneck": vision_model("ResNet", 64, torchvision.models.resnet.Bottleneck, [1, 1, 1, 1]),
    "resnext": resnext(32, 4, [1, 1, 1, 1]),
    "densenet": vision_model("DenseNet", 64, 12, (2, 2, 2, 2), 16),
    "vgg11_bn": headless("vgg11_bn", 64, 512),
    "squeezenet1_1": vision("squeezenet1_1"),
    "shufflenet_v2_x0_5": vision("shufflenet_v2_x0_5"),
    "mobilenet_v2": vision("mobilenet_v2"),
    "mobilenet_v3_small": vision("mobilenet_v3_small"),
    "mnasnet0_5": vision("mnasnet0_5"),
    "regnet_x": regnet(None),
    "regnet_y": regnet(0.25),
    "efficientnet_b0": vision("efficientnet_b0"),
    "googlenet": vision("googlenet", 48, aux_logits=False, init_weights=False),
    "inception_v3": vision("inception_v3", 128, aux_logits=False, init_weights=False),
    "swin": swin("SwinTransformer", ""),
    "swin_v2": swin("SwinTransformer", "V2"),
    "vit": vision_model("VisionTransformer", 32, 32, 8, 2, 4, 48, 96),
    "maxvit": vision_model("MaxVit", 64, (64, 64), 16, 8, [16, 32], [1, 1], 4, 0.0),
    # timm, attention among them
    "botnet26t": timm_("botnet26t_256", 256),
    "halonet26t": timm_("halonet26t", 256),
    "lambda_resnet26t": timm_("lambda_resnet26t", 128),
    "levit_128s": timm_("levit_128s", 224),
    "deit_tiny": timm_("deit_tiny_patch16_224", 64, img_size=64, depth=2),
    "deit3": timm_("deit3_small_patch16_224", 64, img_size=64, depth=2, embed_dim=96, num_heads=3),
    "deit_distilled": timm_("deit_tiny_distilled_patch16_224", 64, img_size=64, depth=2),
    "cait": timm_("cait_xxs24_224", 64, img_size=64, depth=2),
    "xcit": timm_("xcit_nano_12_p16_224", 64, img_size=64, depth=2),
    "pit_ti": timm_("pit_ti_224", 64, img_size=64, depth=(1, 1, 1)),
    "twins_pcpvt": timm_("twins_pcpvt_small", 64, img_size=64, depths=(1, 1, 1, 1), embed_dims=(16, 32, 48, 64), num_heads=(1, 2, 3, 4)),
    "twins_svt": timm_("twins_svt_small", 224, depths=(1, 1, 2, 1), embed_dims=(16, 32, 48, 64), num_heads=(1, 2, 3, 4)),
    "pvt_v2_b0": timm_("pvt_v2_b0", 64),
    "poolformer": timm_class("metaformer.MetaFormer", 64, depths=(1, 1, 1, 1), dims=(16, 32, 48, 64)),
    "caformer": timm_class(
        "metaformer.MetaFormer", 64, depths=(1, 1, 1, 1), dims=(16, 32, 64, 96), mlp_act=metaformer.StarReLU,
        token_mixers=[metaformer.SepConv] * 2 + [metaformer.Attention] * 2,
        norm_layers=[metaformer.LayerNorm2dNoBias] * 2 + [metaformer.LayerNormNoBias] * 2,
    ),
    "mixer": timm_class("mlp_mixer.MlpMixer", 64, img_size=64, num_blocks=2, embed_dim=64),
    "gmlp": timm_class("mlp_mixer.MlpMixer", 64, img_size=64, num_blocks=2, embed_dim=64, mlp_ratio=4, block_layer=mlp_mixer.SpatialGatingBlock, mlp_layer=timm.layers.GatedMlp),
    "resmlp": timm_class("mlp_mixer.MlpMixer", 64, img_size=64, num_blocks=2, embed_dim=64, mlp_ratio=4, block_layer=mlp_mixer.ResBlock, norm_layer=mlp_mixer.Affine),
    "coatnet": timm_("coatnet_nano_rw_224", 64, img_size=64, depths=(1, 1, 1, 1), embed_dim=(16, 32, 64, 96), stem_width=16),
    "coat_lite": timm_("coat_lite_tiny", 64, img_size=64),
    "edgenext": timm_("edgenext_xx_small", 64),
    "mobilevit": timm_("mobilevit_xxs", 64),
    "mobilevitv2": timm_("mobilevitv2_050", 64),
    "efficientformer_l1": timm_("efficientformer_l1", 224, depths=(1, 1, 1, 2), embed_dims=(16, 32, 48, 64)),
    "efficientformerv2_s0": timm_("efficientformerv2_s0", 224),
    "efficientvit_b0": timm_("efficientvit_b0", 64),
    "efficientvit_m0": timm_("efficientvit_m0", 224),
    "fastvit_t8": timm_("fastvit_t8", 64),
    "repvit_m0_9": timm_("repvit_m0_9", 32),
    "shvit_s1": timm_("shvit_s1", 64),
    "swiftformer_xs": timm_("swiftformer_xs", 64),
    "crossvit_tiny": timm_("crossvit_tiny_240", 240, depth=[[1, 1, 0]]),
    "visformer_tiny": timm_("visformer_tiny", 64, img_size=64),
    "convit_tiny": timm_("convit_tiny", 64, img_size=64, depth=4, local_up_to_layer=2),
    "tnt": timm_("tnt_s_patch16_224", 64, img_size=64, depth=2, embed_dim=96, num_heads_outer=4),
    "nest_tiny": timm_class("nest.Nest", 64, img_size=64, embed_dims=(24, 48, 96), num_heads=(1, 2, 4), depths=(1, 1, 2)),
    "beit": timm_("beit_base_patch16_224", 64, img_size=64, depth=2, embed_dim=96, num_heads=3),
    "eva02_tiny": timm_("eva02_tiny_patch14_224", 56, False, img_size=56, depth=2),
    "vit_relpos": timm_("vit_relpos_small_patch16_224", 64, img_size=64, depth=2, embed_dim=96, num_heads=3),
    "vit_siglip": timm_("vit_base_patch16_siglip_224", 64, img_size=64, depth=2, embed_dim=96, num_heads=3),
    "vit_dinov3": timm_("vit_small_patch16_dinov3", 64, False, img_size=64, depth=2, embed_dim=96, num_heads=3),
    "vit_r_hybrid": timm_("vit_tiny_r_s16_p8_224", 64, img_size=64, depth=2),
    "swinv2_cr": timm_("swinv2_cr_tiny_224", 64, img_size=64, depths=(1, 1, 1, 1), embed_dim=24, window_size=(2, 2)),
    "volo": timm_class("volo.VOLO", 64, layers=(1, 1, 1, 1), img_size=64, embed_dims=(48, 96, 96, 96), num_heads=(2, 4, 4, 4)),
    "davit": timm_class("davit.DaVit", 64, depths=(1, 1, 1, 1), embed_dims=(24, 48, 96, 96), num_heads=(1, 2, 4, 4)),
    "gcvit": timm_class("gcvit.GlobalContextVit", 64, img_size=64, depths=(1, 1, 1, 1), embed_dim=24, num_heads=(1, 2, 4, 4), window_size=(4, 4, 4, 2), window_ratio=None),
    "hiera": timm_("hiera_tiny_224", 224, stages=(1, 1, 1, 1), embed_dim=24),
    "mvitv2_tiny": timm_class("mvitv2.MultiScaleVit", 64, img_size=64, cfg=mvitv2.MultiScaleVitCfg(depths=(1, 1, 1, 1), embed_dim=24)),
    "sequencer2d": timm_("sequencer2d_s", 64, img_size=64, layers=(1, 1, 1, 1), embed_dims=(32, 48, 48, 48)),
    "tiny_vit": timm_("tiny_vit_5m_224", 224),
    "samvit": timm_("samvit_base_patch16_224", 64, img_size=64, depth=2, embed_dim=48, num_heads=3, global_attn_indexes=(1,)),
    "maxxvit_rmlp": timm_("maxvit_rmlp_pico_rw_256", 64, img_size=64),
    # timm, convolutional
    "resnet10t": timm_("resnet10t"),
    "seresnext26t": timm_("seresnext26t_32x4d", 64),
    "ecaresnet26t": timm_("ecaresnet26t", 64),
    "resnetblur18": timm_("resnetblur18", 64),
    "resnetv2_bit": timm_class("resnetv2.ResNetV2", 32, layers=(1, 1, 1, 1), channels=(32, 64, 64, 128), act_layer=nn.ReLU, conv_layer=timm.layers.StdConv2d, norm_layer=lambda c, **_: timm.layers.GroupNormAct(c, 8)),
    "resnetv2_18": timm_("resnetv2_18", 64),
    "nfnet": timm_class("nfnet.NormFreeNet", 32, cfg=nfnet._dm_nfnet_cfg((1, 1, 1, 1), (256, 256, 256, 512))),
    "nf_regnet_b0": timm_("nf_regnet_b0", 32, depths=(1, 1, 1, 1)),
    "eca_nfnet_l0": timm_class("nfnet.NormFreeNet", 32, cfg=nfnet._nfnet_cfg((1, 1, 1, 1), (256, 256, 256, 512), attn_layer="eca", attn_kwargs={})),
    "resnest14d": timm_("resnest14d", 64),
    "res2net50": timm_("res2net50_14w_8s", 64, layers=(1, 1, 1, 1)),
    "skresnet18": timm_("skresnet18", 64),
    "dpn48b": timm_("dpn48b", 64),
    "dla46_c": timm_("dla46_c", 64),
    "hrnet_w18_small": timm_("hrnet_w18_small", 64),
    "ese_vovnet19b_slim_dw": timm_("ese_vovnet19b_slim_dw", 64),
    "ghostnet_050": timm_("ghostnet_050", 64),
    "ghostnetv2_100": timm_("ghostnetv2_100", 64),
    "mixnet_s": timm_("mixnet_s", 32),
    "lcnet_035": timm_("lcnet_035", 32),
    "tinynet_e": timm_("tinynet_e", 32),
    "rexnetr_100": timm_("rexnet_100", 32),
    "selecsls42": timm_("selecsls42", 64),
    "hgnetv2_b0": timm_("hgnetv2_b0", 64),
    "repvgg_a0": timm_("repvgg_a0", 64),
    "repghostnet_050": timm_("repghostnet_050", 64),
    "mobileone_s0": timm_("mobileone_s0", 64),
    "tresnet_m": timm_("tresnet_m", 64, layers=[1, 1, 1, 1]),
    "xception41": timm_("xception41", 64),
    "cspresnext50": timm_("cspresnet50", 64),
    "darknet53": timm_("cs3darknet_s", 64),
    "gernet_s": timm_("gernet_s", 64),
    "gcresnet33ts": timm_("gcresnext26ts", 64),
    "legacy_senet": timm_("legacy_seresnet18", 64),
    "efficientnet_b0_gn": timm_("efficientnet_b0_gn", 32),
    "efficientnet_lite0": timm_("efficientnet_lite0", 32),
    "tf_mobilenetv3": timm_("tf_mobilenetv3_small_minimal_100", 33),
    "tf_efficientnetv2_b0": timm_("tf_efficientnetv2_b0", 33),
    "fbnetc_100": timm_("fbnetc_100", 64),
    "mobilenetv4_conv_small_050": timm_("mobilenetv4_conv_small_050", 32),
    "convnext_atto": timm_("convnext_atto", 32, depths=(1, 1, 1, 1)),
    "convnextv2_atto": timm_("convnextv2_atto", 32, depths=(1, 1, 1, 1)),
    "convmixer": timm_class("convmixer.ConvMixer", 35, dim=64, depth=2),
    "inception_next_atto": timm_("inception_next_atto", 64),
    "fasternet_t0": timm_("fasternet_t0", 32),
    "starnet_s050": timm_("starnet_s050", 32),
    "mambaout_femto": timm_("mambaout_femto", 32),
    "focalnet": timm_class("focalnet.FocalNet", 64, embed_dim=24, depths=(1, 1, 1, 1)),
    "rdnet_tiny": timm_class("rdnet.RDNet", 64, num_init_features=16, growth_rates=(16, 16, 24), num_blocks_list=(2, 2, 2), is_downsample_block=(None, True, True), transition_compression_ratio=0.5, block_type=("Block", "Block", "BlockESE"), bottleneck_width_ratio=4),
}
