# ruff: noqa: E501  # operator schemas and the table of networks read better unbroken
"""Networks that people really have, small: what issue 3 asks the exporter to take.

The packages are for tests only and live in a folder of their own (`EQUIPOISE_ZOO`, by default build/zoo), because a
torchvision from PyPI does not import beside a CPU build of torch unless its compiled operators are declared first.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

ZOO = Path(os.environ.get("EQUIPOISE_ZOO", Path(__file__).parents[2] / "build" / "zoo"))


def open_zoo() -> None:
    """Puts the zoo's packages last on the path and declares the operators that torchvision's missing library would."""
    if str(ZOO) in sys.path:
        return
    sys.path.append(str(ZOO))
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in (
        "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "roi_align(Tensor input, Tensor rois, float spatial_scale, int pooled_height, int pooled_width, int sampling_ratio, bool aligned) -> Tensor",
        "roi_pool(Tensor input, Tensor rois, float spatial_scale, int pooled_height, int pooled_width) -> (Tensor, Tensor)",
        "ps_roi_align(Tensor input, Tensor rois, float spatial_scale, int pooled_height, int pooled_width, int sampling_ratio) -> (Tensor, Tensor)",
        "ps_roi_pool(Tensor input, Tensor rois, float spatial_scale, int pooled_height, int pooled_width) -> (Tensor, Tensor)",
        "deform_conv2d(Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, int stride_h, int stride_w, int pad_h, int pad_w, int dilation_h, int dilation_w, int groups, int offset_groups, bool use_mask) -> Tensor",
    ):
        library.define(schema)
    open_zoo.library = library  # type: ignore[attr-defined]  # its declarations die with it


def awake(network: nn.Module, image: torch.Tensor) -> nn.Module:
    """The network with running statistics of its own and no layer that is initialised to nothing.

    A fresh network hardly answers to its masks: heads start at zero, and statistics that were never taken let
    activations vanish. Nothing can be proven about it, nor refuted.
    """
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1 and float(parameter.abs().max()) < 1e-3:
                nn.init.normal_(parameter, std=0.5)
        network.eval()
        norms = [part for part in network.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
        for norm in norms:
            norm.train()
            norm.momentum = None
        network(image)
        network.eval()
    return network


@dataclass(frozen=True)
class Animal:
    """One network: how it is made, and what it is asked."""

    make: Callable[[], nn.Module]
    task: str
    classes: int
    shape: tuple[int, ...]
    multiple: int = 1
    dynamic: bool = False
    output: str | None = None
    sites: int | None = None


def monai_unet(rank: int) -> nn.Module:
    open_zoo()
    from monai.networks.nets import UNet

    return UNet(rank, 1, 2, (8, 16, 32), (2, 2), num_res_units=2, dropout=0.2)


def monai_unet_batch() -> nn.Module:
    open_zoo()
    from monai.networks.nets import UNet

    return UNet(2, 1, 2, (8, 16, 32), (2, 2), num_res_units=2, dropout=0.2, norm="batch")


def basic_unet() -> nn.Module:
    open_zoo()
    from monai.networks.nets import BasicUNet

    return BasicUNet(3, 1, 2, features=(8, 8, 16, 16, 16, 8), dropout=0.2)


def attention_unet() -> nn.Module:
    open_zoo()
    from monai.networks.nets import AttentionUnet

    return AttentionUnet(2, 1, 2, (8, 16, 32), (2, 2), dropout=0.2)


def unetr(rank: int) -> nn.Module:
    open_zoo()
    from monai.networks.nets import UNETR

    size = (32, 32, 32)[:rank]
    return UNETR(
        1, 2, size, feature_size=8, hidden_size=48, mlp_dim=96, num_heads=4, dropout_rate=0.1, spatial_dims=rank
    )


def swin_unetr() -> nn.Module:
    open_zoo()
    from monai.networks.nets import SwinUNETR

    return SwinUNETR(
        1,
        2,
        feature_size=12,
        depths=(1, 1, 1, 1),
        num_heads=(1, 2, 2, 4),
        drop_rate=0.1,
        attn_drop_rate=0.1,
        dropout_path_rate=0.1,
        spatial_dims=2,
    )


def segresnet() -> nn.Module:
    open_zoo()
    from monai.networks.nets import SegResNet

    return SegResNet(2, 8, 1, 2, dropout_prob=0.2)


def vnet() -> nn.Module:
    open_zoo()
    from monai.networks.nets import VNet

    return VNet(3, 1, 2, dropout_prob_down=0.2, dropout_prob_up=(0.2, 0.2))


def dynunet() -> nn.Module:
    open_zoo()
    from monai.networks.nets import DynUNet

    return DynUNet(
        2, 1, 2, (3, 3, 3), (1, 2, 2), (2, 2), filters=(8, 16, 32), dropout=0.2, deep_supervision=True, deep_supr_num=1
    )


def monai_densenet() -> nn.Module:
    open_zoo()
    from monai.networks.nets import DenseNet121

    return DenseNet121(2, 1, 2, init_features=8, growth_rate=4, dropout_prob=0.2)


def unet_plus_plus() -> nn.Module:
    open_zoo()
    from monai.networks.nets import BasicUNetPlusPlus

    return BasicUNetPlusPlus(2, 1, 2, features=(8, 8, 16, 16, 16, 8), dropout=0.2)


def nnunet(rank: int, deep: bool = False) -> nn.Module:
    open_zoo()
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    conv = {2: nn.Conv2d, 3: nn.Conv3d}[rank]
    drop = {2: nn.Dropout2d, 3: nn.Dropout3d}[rank]
    norm = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[rank]
    return PlainConvUNet(
        1, 3, [8, 16, 32], conv, 3, [1, 2, 2], 2, 3, 2, True, norm, {"affine": True}, drop, {"p": 0.2}, nn.LeakyReLU,
        {"inplace": True}, deep_supervision=deep,
    )  # fmt: skip


def torchvision_model(name: str, **arguments: object) -> nn.Module:
    open_zoo()
    import torchvision

    return getattr(torchvision.models, name)(weights=None, **arguments)


def vision_transformer() -> nn.Module:
    open_zoo()
    from torchvision.models import VisionTransformer

    return VisionTransformer(32, 8, 2, 4, 32, 64, dropout=0.1, attention_dropout=0.1, num_classes=3)


def deeplab() -> nn.Module:
    open_zoo()
    import segmentation_models_pytorch as smp

    return smp.DeepLabV3Plus("resnet18", encoder_weights=None, in_channels=3, classes=2)


def smp_model(name: str, *, with_classes: bool = False) -> nn.Module:
    """With classes: a second output, behind dropout, for the whole image."""
    open_zoo()
    import segmentation_models_pytorch as smp

    aux = {"classes": 3, "dropout": 0.3} if with_classes else None
    return getattr(smp, name)("resnet18", encoder_weights=None, in_channels=3, classes=2, aux_params=aux)


def timm_model(name: str, **arguments: object) -> nn.Module:
    open_zoo()
    import timm

    return timm.create_model(name, pretrained=False, **arguments)


def segformer() -> nn.Module:
    open_zoo()
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    config = SegformerConfig(
        num_labels=3, depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 24, 32], decoder_hidden_size=32,
        hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1, drop_path_rate=0.1, classifier_dropout_prob=0.1,
    )  # fmt: skip
    return SegformerForSemanticSegmentation(config)


def monai_model(name: str, *sizes: object, **arguments: object) -> nn.Module:
    open_zoo()
    import monai.networks.nets

    return getattr(monai.networks.nets, name)(*sizes, **arguments)


def residual_nnunet(rank: int) -> nn.Module:
    open_zoo()
    from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet

    conv = {2: nn.Conv2d, 3: nn.Conv3d}[rank]
    drop = {2: nn.Dropout2d, 3: nn.Dropout3d}[rank]
    norm = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[rank]
    return ResidualEncoderUNet(
        1, 3, [8, 16, 32], conv, 3, [1, 2, 2], [1, 2, 2], 3, [1, 1], True, norm, {"affine": True}, drop, {"p": 0.2},
        nn.LeakyReLU, {"inplace": True},
    )  # fmt: skip


def huggingface(name: str, **changes: object) -> nn.Module:
    """`ViT` and the like: a small classifier with dropout in every place that its configuration knows."""
    open_zoo()
    import transformers

    sizes = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 32,
        "patch_size": 8, "num_labels": 3, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
    }  # fmt: skip
    config = getattr(transformers, f"{name}Config")(**{**sizes, **changes})
    return getattr(transformers, f"{name}ForImageClassification")(config)


ZOO_NETWORKS: dict[str, Animal] = {
    "monai_unet_2d": Animal(lambda: monai_unet(2), "segmentation", 2, (1, 32, 48), 4, True),
    "monai_unet_2d_batchnorm": Animal(monai_unet_batch, "segmentation", 2, (1, 32, 48), 4, True),
    "monai_unet_3d": Animal(lambda: monai_unet(3), "segmentation", 2, (1, 16, 24, 16), 4, True),
    "monai_basic_unet_3d": Animal(basic_unet, "segmentation", 2, (1, 32, 32, 32), 16, True),
    "monai_attention_unet_2d": Animal(attention_unet, "segmentation", 2, (1, 32, 48), 4, True),
    "monai_unetr_2d": Animal(lambda: unetr(2), "segmentation", 2, (1, 32, 32)),
    "monai_unetr_3d": Animal(lambda: unetr(3), "segmentation", 2, (1, 32, 32, 32)),
    "monai_swin_unetr_2d": Animal(swin_unetr, "segmentation", 2, (1, 64, 64)),
    "monai_segresnet_2d": Animal(segresnet, "segmentation", 2, (1, 32, 48), 8, True),
    "monai_vnet_3d": Animal(vnet, "segmentation", 2, (1, 32, 32, 32), 16, True),
    "monai_dynunet_2d": Animal(dynunet, "segmentation", 2, (1, 32, 48), 4, True),
    "monai_unet_plus_plus_2d": Animal(unet_plus_plus, "segmentation", 2, (1, 32, 48), 16, True, output="0"),
    "monai_densenet121_2d": Animal(monai_densenet, "classification", 2, (1, 64, 64), sites=58),
    "nnunet_2d": Animal(lambda: nnunet(2), "segmentation", 3, (1, 32, 48), 4, True),
    "nnunet_3d": Animal(lambda: nnunet(3), "segmentation", 3, (1, 16, 24, 16), 4, True),
    "nnunet_2d_deep_supervision": Animal(lambda: nnunet(2, True), "segmentation", 3, (1, 32, 48), 4, True),
    "mobilenet_v3_small": Animal(
        lambda: torchvision_model("mobilenet_v3_small", num_classes=3), "classification", 3, (3, 64, 64)
    ),
    "torchvision_densenet121": Animal(
        lambda: torchvision_model("densenet121", drop_rate=0.2, num_classes=3),
        "classification",
        3,
        (3, 64, 64),
        sites=58,
    ),
    "vision_transformer": Animal(vision_transformer, "classification", 3, (3, 32, 32)),
    "swin_t": Animal(lambda: torchvision_model("swin_t", num_classes=3), "classification", 3, (3, 64, 64)),
    "convnext_tiny": Animal(
        lambda: torchvision_model("convnext_tiny", num_classes=3), "classification", 3, (3, 64, 64)
    ),
    "smp_deeplabv3plus": Animal(deeplab, "segmentation", 2, (3, 64, 96), 16, True),
    "timm_efficientnet_b0": Animal(
        lambda: timm_model("efficientnet_b0", drop_rate=0.2, drop_path_rate=0.2, num_classes=3),
        "classification",
        3,
        (3, 64, 64),
    ),
    "timm_vit_tiny": Animal(
        lambda: timm_model(
            "vit_tiny_patch16_224",
            img_size=64,
            drop_rate=0.1,
            attn_drop_rate=0.1,
            drop_path_rate=0.1,
            num_classes=3,
            depth=3,
        ),
        "classification",
        3,
        (3, 64, 64),
    ),
    "transformers_segformer": Animal(segformer, "segmentation", 3, (3, 64, 96), 32, True),
    "monai_highresnet_3d": Animal(
        lambda: monai_model("HighResNet", 3, 1, 2, dropout_prob=0.2), "segmentation", 2, (1, 16, 16, 16), 1, True
    ),
    "monai_segresnet_vae_2d": Animal(
        lambda: monai_model(
            "SegResNetVAE", (32, 48), spatial_dims=2, init_filters=8, in_channels=1, out_channels=2, dropout_prob=0.2
        ),
        "segmentation",
        2,
        (1, 32, 48),
        8,
        output="0",
    ),
    "monai_senet_2d": Animal(
        lambda: monai_model(
            "SENet", 2, 1, "se_resnet_bottleneck", [1, 1, 1, 1], 1, 16, dropout_prob=0.2, num_classes=2
        ),
        "classification",
        2,
        (1, 64, 64),
    ),
    "nnunet_residual_3d": Animal(lambda: residual_nnunet(3), "segmentation", 3, (1, 16, 24, 16), 4, True),
    "smp_fpn": Animal(lambda: smp_model("FPN"), "segmentation", 2, (3, 64, 96), 32, True),
    "smp_unet_whole_image": Animal(
        lambda: smp_model("Unet", with_classes=True), "classification", 3, (3, 64, 96), 32, output="1"
    ),
    "timm_resnet18_dropblock": Animal(
        lambda: timm_model("resnet18", drop_rate=0.1, drop_block_rate=0.1, num_classes=3),
        "classification",
        3,
        (3, 64, 64),
        sites=5,
    ),
    "timm_swin": Animal(
        lambda: timm_model(
            "swin_tiny_patch4_window7_224",
            img_size=64,
            window_size=2,
            depths=(1, 1, 1, 1),
            drop_rate=0.1,
            attn_drop_rate=0.1,
            drop_path_rate=0.2,
            num_classes=3,
        ),
        "classification",
        3,
        (3, 64, 64),
    ),
    "timm_deit_distilled": Animal(
        lambda: timm_model(
            "deit_tiny_distilled_patch16_224", img_size=64, depth=2, drop_rate=0.1, drop_path_rate=0.1, num_classes=3
        ),
        "classification",
        3,
        (3, 64, 64),
    ),
    "timm_eva": Animal(
        lambda: timm_model(
            "eva02_tiny_patch14_224",
            img_size=64,
            patch_size=16,
            depth=2,
            drop_rate=0.1,
            drop_path_rate=0.1,
            attn_drop_rate=0.1,
            num_classes=3,
        ),
        "classification",
        3,
        (3, 64, 64),
    ),
    "transformers_vit": Animal(lambda: huggingface("ViT"), "classification", 3, (3, 32, 32)),
    "transformers_vit_eager": Animal(
        lambda: huggingface("ViT", attn_implementation="eager"), "classification", 3, (3, 32, 32)
    ),
    "transformers_beit": Animal(lambda: huggingface("Beit", drop_path_rate=0.1), "classification", 3, (3, 32, 32)),
    "transformers_dinov2": Animal(lambda: huggingface("Dinov2", drop_path_rate=0.1), "classification", 3, (3, 32, 32)),
}

CHOSEN = frozenset(
    {
        "monai_unet_3d",  # three dimensions, sizes dynamic
        "timm_swin",  # windowed attention; MONAI's wants einops from build/zoo before MONAI is imported elsewhere
        "monai_densenet121_2d",  # 58 sites
        "nnunet_2d_deep_supervision",  # several outputs
        "mobilenet_v3_small",  # squeeze and excitation; dropout in the head alone
        "vision_transformer",  # dropout inside fused attention
        "smp_deeplabv3plus",  # dilated pyramid, element dropout
        "timm_efficientnet_b0",  # drop path
        "timm_resnet18_dropblock",  # DropBlock
        "transformers_segformer",  # a Hugging Face model with its output object
    }
)
"""One of each kind: what `make test-all` runs."""
