"""Checkpoints with the tensors' names of the released code (and of SatlasNet) and random weights, at any size.

Names and shapes are written out here by hand, independently of the loader, so that a name that the loader gets wrong
shows. Numbers are drawn so that every tensor matters: norms are not 1, biases not 0, some logit scales above the limit.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Sizes:
    """Sizes of a released network; defaults make one that is exported in seconds."""

    channels: int = 8
    depths: tuple = (2, 1)
    heads: tuple = (1, 2)
    window: int = 8
    hidden: int = 16
    embedding: int = 16
    widths: tuple = ((4, 8), (8, 16))
    outputs: int = 1
    frequencies: int = 6
    geo_layers: int = 5
    expansion: int = 4
    classifier: int = 10

    @property
    def last(self) -> int:
        return self.channels << (len(self.depths) - 1)


FULL = Sizes(
    channels=128,
    depths=(2, 2, 18, 2),
    heads=(4, 8, 16, 32),
    hidden=512,
    embedding=1024,
    widths=((256, 512), (256, 512), (512, 1024), (1024, 1024)),
    frequencies=64,
    classifier=1000,
)


def _linear(name, outputs, inputs, bias=True):
    shapes = {f"{name}.weight": (outputs, inputs)}
    return {**shapes, f"{name}.bias": (outputs,)} if bias else shapes


def _norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def swin_v2_shapes(sizes: Sizes, prefix: str) -> dict:
    """torchvision's names of a Swin V2 for nine bands."""
    width, t = sizes.channels, sizes.window
    shapes = {f"{prefix}features.0.0.weight": (width, 9, 4, 4), f"{prefix}features.0.0.bias": (width,)}
    shapes.update(_norm(f"{prefix}features.0.2", width))
    for stage, depth in enumerate(sizes.depths):
        width, heads = sizes.channels << stage, sizes.heads[stage]
        for block in range(depth):
            at = f"{prefix}features.{2 * stage + 1}.{block}"
            shapes.update(_norm(f"{at}.norm1", width))
            shapes[f"{at}.attn.logit_scale"] = (heads, 1, 1)
            shapes[f"{at}.attn.relative_coords_table"] = (1, 2 * t - 1, 2 * t - 1, 2)
            shapes[f"{at}.attn.relative_position_index"] = (t**4,)
            shapes.update(_linear(f"{at}.attn.qkv", 3 * width, width))
            shapes.update(_linear(f"{at}.attn.proj", width, width))
            shapes.update(_linear(f"{at}.attn.cpb_mlp.0", sizes.hidden, 2))
            shapes.update(_linear(f"{at}.attn.cpb_mlp.2", heads, sizes.hidden, bias=False))
            shapes.update(_norm(f"{at}.norm2", width))
            shapes.update(_linear(f"{at}.mlp.0", sizes.expansion * width, width))
            shapes.update(_linear(f"{at}.mlp.3", width, sizes.expansion * width))
        if stage + 1 < len(sizes.depths):
            at = f"{prefix}features.{2 * stage + 2}"
            shapes.update(_linear(f"{at}.reduction", 2 * width, 4 * width, bias=False))
            shapes.update(_norm(f"{at}.norm", 2 * width))
    shapes.update(_norm(f"{prefix}norm", sizes.last))
    shapes.update(_linear(f"{prefix}head", sizes.classifier, sizes.last))
    return shapes


def swin_v1_shapes(sizes: Sizes, prefix: str) -> dict:
    """SimMIM's names of a Swin V1 for ten covariates."""
    width, t = sizes.channels, sizes.window
    shapes = {f"{prefix}patch_embed.proj.weight": (width, 10, 4, 4), f"{prefix}patch_embed.proj.bias": (width,)}
    shapes.update(_norm(f"{prefix}patch_embed.norm", width))
    for stage, depth in enumerate(sizes.depths):
        width, heads, side = sizes.channels << stage, sizes.heads[stage], 64 >> stage
        for block in range(depth):
            at = f"{prefix}layers.{stage}.blocks.{block}"
            if block % 2 and side > t:
                shapes[f"{at}.attn_mask"] = ((side // t) ** 2, t * t, t * t)
            shapes.update(_norm(f"{at}.norm1", width))
            shapes[f"{at}.attn.relative_position_bias_table"] = ((2 * t - 1) ** 2, heads)
            shapes[f"{at}.attn.relative_position_index"] = (t * t, t * t)
            shapes.update(_linear(f"{at}.attn.qkv", 3 * width, width))
            shapes.update(_linear(f"{at}.attn.proj", width, width))
            shapes.update(_norm(f"{at}.norm2", width))
            shapes.update(_linear(f"{at}.mlp.fc1", sizes.expansion * width, width))
            shapes.update(_linear(f"{at}.mlp.fc2", width, sizes.expansion * width))
        if stage + 1 < len(sizes.depths):
            at = f"{prefix}layers.{stage}.downsample"
            shapes.update(_linear(f"{at}.reduction", 2 * width, 4 * width, bias=False))
            shapes.update(_norm(f"{at}.norm", 4 * width))
    return shapes


def _mapper(name, width):
    return {
        **_linear(f"{name}.0.layers.0", width, width),
        **_linear(f"{name}.0.layers.2", width, width),
        **_norm(f"{name}.1", width),
    }


def _head(name, width, outputs):
    return {
        **_linear(f"{name}.0", width, width),
        **_linear(f"{name}.2", width // 2, width),
        **_linear(f"{name}.4", outputs, width // 2),
    }


def released_shapes(sizes: Sizes) -> dict:
    """All names of a released checkpoint."""
    d, shapes = sizes.embedding, {}
    encoders = {"sat": swin_v2_shapes, "cov": swin_v1_shapes}
    for short, encoder in encoders.items():
        shapes.update(encoder(sizes, f"{short}_encoder.feature_extractor."))
        for stage, (first, second) in enumerate(sizes.widths):
            at = f"{short}_encoder.query_layers.{stage}"
            shapes.update(_linear(f"{at}.mlp.layers.0", first, (sizes.channels << stage) + 2))
            shapes.update(_linear(f"{at}.mlp.layers.2", second, first))
            shapes.update(_linear(f"{at}.mlp.layers.4", d, second))
            shapes.update(_linear(f"{at}.output_layer", d, d))
            shapes.update(_norm(f"{at}.norm", d))
        shapes.update(_norm(f"{short}_encoder.norm", d))
        shapes.update(_mapper(f"{short}_mapper", d))
    shapes.update(_mapper("visual_mapper", d))
    shapes.update(_head("out", d, sizes.outputs))
    for layer in range(sizes.geo_layers):
        shapes.update(_linear(f"geo_encoder.layers.{layer}.lin", d, 4 * sizes.frequencies if layer == 0 else d))
        if 0 < layer < sizes.geo_layers - 1:
            shapes.update(_norm(f"geo_encoder.layers.{layer}.layer_norm", d))
    shapes.update(_mapper("geo_mapper", d))
    shapes.update(_head("geo_out", d, sizes.outputs))
    return shapes


def random_state(shapes: dict, seed: int = 0) -> dict:
    """Draw weights for names and shapes."""
    generator = torch.Generator().manual_seed(seed)

    def normal(shape, scale):
        return torch.randn(shape, generator=generator) * scale

    state = {}
    for name, shape in shapes.items():
        if name.endswith("relative_position_index"):
            state[name] = torch.zeros(shape, dtype=torch.long)
        elif name.endswith("logit_scale"):
            state[name] = math.log(10.0) + normal(shape, 2.0)  # some beyond log 100
        elif name.endswith("bias_table"):
            state[name] = normal(shape, 1.0)
        elif len(shape) > 1:
            state[name] = normal(shape, 1.2 / math.sqrt(math.prod(shape[1:])))
        elif name.endswith(".weight"):
            state[name] = 1.0 + normal(shape, 0.3)
        else:
            state[name] = normal(shape, 0.3)
    return state


def released_state(sizes: Sizes = Sizes(), seed: int = 0) -> dict:
    return random_state(released_shapes(sizes), seed)


def one_of_each_kind(state: dict) -> list:
    """The last of the names that differ by block and stage numbers only."""
    kinds = {}
    for name in state:
        kinds[re.sub(r"(features|layers|blocks)\.\d+(\.\d+)?\.(?=.*\.)", r"\1.", name)] = name
    return list(kinds.values())
