"""What a released network answers, written a second time: straight from a checkpoint's tensors, slow and literal.

Nothing of ``training`` is used. Attention goes window by window with its position bias worked out pair by pair, tokens
are merged by strided slices, tokens near a query are found with ``grid_sample``. Checked against the vectors of the
released code where they are at hand (test_released_conformance).
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F  # noqa: N812  # reason: its usual name


def linear(s, at, x):
    return F.linear(x, s[f"{at}.weight"], s.get(f"{at}.bias"))


def norm(s, at, x):
    return F.layer_norm(x, x.shape[-1:], s[f"{at}.weight"], s[f"{at}.bias"])


def attend(s, at, x, heads, window, is_shifted, version):
    """Window attention of one block on (N, H, W, C)."""
    n, height, width, channels = x.shape
    shift = window // 2 if is_shifted and height > window else 0
    x = torch.roll(x, (-shift, -shift), (1, 2))
    row, column = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    apart = torch.stack([a.flatten()[:, None] - a.flatten()[None, :] for a in (row, column)], -1)  # (T, T, 2)
    bias = s[f"{at}.qkv.bias"].clone()
    if version == 2:
        bias[channels : 2 * channels] = 0.0
        scaled = apart.to(x.dtype) / (window - 1) * 8.0
        scaled = torch.sign(scaled) * torch.log2(scaled.abs() + 1.0) / math.log2(8.0)
        position = linear(s, f"{at}.cpb_mlp.2", torch.relu(linear(s, f"{at}.cpb_mlp.0", scaled)))
        position = 16.0 * torch.sigmoid(position).permute(2, 0, 1)
    else:
        index = (apart[..., 0] + window - 1) * (2 * window - 1) + apart[..., 1] + window - 1
        position = s[f"{at}.relative_position_bias_table"][index].permute(2, 0, 1)
    out = torch.empty_like(x)
    for top in range(0, height, window):
        for left in range(0, width, window):
            part = x[:, top : top + window, left : left + window].reshape(n, window * window, channels)
            qkv = F.linear(part, s[f"{at}.qkv.weight"], bias)
            q, k, v = (piece.reshape(n, -1, heads, channels // heads).transpose(1, 2) for piece in qkv.chunk(3, dim=-1))
            if version == 2:
                scale = torch.clamp(s[f"{at}.logit_scale"], max=math.log(100.0)).exp()
                logits = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * scale
            else:
                logits = q @ k.transpose(-2, -1) / math.sqrt(channels // heads)
            logits = logits + position
            if shift:  # rows and columns that rolling brought from the other side stay among themselves
                wrapped = 2 * (top + row >= height - shift).long() + (left + column >= width - shift).long()
                differs = wrapped.flatten()[:, None] != wrapped.flatten()[None, :]
                logits = logits - 100.0 * differs
            mixed = (logits.softmax(-1) @ v).transpose(1, 2).reshape(n, window * window, channels)
            out[:, top : top + window, left : left + window] = linear(s, f"{at}.proj", mixed).reshape(
                n, window, window, channels
            )
    return torch.roll(out, (shift, shift), (1, 2))


def merge(x):
    return torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], dim=-1)


def swin_v2(s, prefix, image, sizes):
    """Stage maps of torchvision's Swin V2."""
    x = F.conv2d(image, s[f"{prefix}features.0.0.weight"], s[f"{prefix}features.0.0.bias"], stride=4)
    x, maps = norm(s, f"{prefix}features.0.2", x.permute(0, 2, 3, 1)), []
    for stage, depth in enumerate(sizes.depths):
        for block in range(depth):
            at = f"{prefix}features.{2 * stage + 1}.{block}"
            mixed = attend(s, f"{at}.attn", x, sizes.heads[stage], sizes.window, block % 2 == 1, 2)
            x = x + norm(s, f"{at}.norm1", mixed)
            x = x + norm(s, f"{at}.norm2", linear(s, f"{at}.mlp.3", F.gelu(linear(s, f"{at}.mlp.0", x))))
        maps.append(x)
        if stage + 1 < len(sizes.depths):
            at = f"{prefix}features.{2 * stage + 2}"
            x = norm(s, f"{at}.norm", linear(s, f"{at}.reduction", merge(x)))
    return maps


def swin_v1(s, prefix, image, sizes):
    """Stage maps of SimMIM's Swin V1."""
    x = F.conv2d(image, s[f"{prefix}patch_embed.proj.weight"], s[f"{prefix}patch_embed.proj.bias"], stride=4)
    x, maps = norm(s, f"{prefix}patch_embed.norm", x.permute(0, 2, 3, 1)), []
    for stage, depth in enumerate(sizes.depths):
        for block in range(depth):
            at = f"{prefix}layers.{stage}.blocks.{block}"
            before = norm(s, f"{at}.norm1", x)
            x = x + attend(s, f"{at}.attn", before, sizes.heads[stage], sizes.window, block % 2 == 1, 1)
            x = x + linear(s, f"{at}.mlp.fc2", F.gelu(linear(s, f"{at}.mlp.fc1", norm(s, f"{at}.norm2", x))))
        maps.append(x)
        if stage + 1 < len(sizes.depths):
            at = f"{prefix}layers.{stage}.downsample"
            x = linear(s, f"{at}.reduction", norm(s, f"{at}.norm", merge(x)))
    return maps


def implicit(s, at, features, query):
    """Implicit function at queries (N, Q, 2) as (x, y), with the released offsets."""
    n, side = features.shape[0], features.shape[1]
    image = features.permute(0, 3, 1, 2)
    centre = (torch.arange(side).float() + 0.5) / side * 2.0 - 1.0
    place = torch.stack(torch.meshgrid(centre, centre, indexing="ij")).expand(n, -1, -1, -1)  # channels row, column
    values, inverse = [], []
    for step_x in (-1, 1):
        for step_y in (-1, 1):
            moved = query + torch.tensor([step_x, step_y]) / side + 1e-6
            moved = moved.clamp(-1 + 1e-6, 1 - 1e-6)[:, :, None]
            near = F.grid_sample(image, moved, mode="nearest", align_corners=False)[..., 0].transpose(1, 2)
            where = F.grid_sample(place, moved, mode="nearest", align_corners=False)[..., 0].transpose(1, 2)
            offset = (query - where) * side  # x minus row, y minus column: the swap
            value = torch.cat([near, offset], dim=-1)
            for layer in (0, 2, 4):
                value = linear(s, f"{at}.mlp.layers.{layer}", value)
                value = torch.relu(value) if layer < 4 else value
            values.append(value)
            inverse.append(1.0 / ((offset[..., 0] * offset[..., 1]).abs() + 1e-9))
    total = sum(inverse)
    blended = sum(value * (weight / total)[..., None] for value, weight in zip(values, inverse))
    return norm(s, f"{at}.norm", linear(s, f"{at}.output_layer", blended))


def mapper(s, at, x):
    return norm(s, f"{at}.1", linear(s, f"{at}.0.layers.2", F.gelu(linear(s, f"{at}.0.layers.0", x))))


def head(s, at, x):
    return linear(s, f"{at}.4", F.gelu(linear(s, f"{at}.2", F.gelu(linear(s, f"{at}.0", x)))))


def geo(s, scaled, sizes):
    """Space2Vec's grid cells, then the layers."""
    radius = [0.0005 * (2.0 / 0.0005) ** (i / (sizes.frequencies - 1)) for i in range(sizes.frequencies)]
    angle = scaled[..., None] / torch.tensor(radius, dtype=torch.float64)
    x = torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-3).float()
    for layer in range(sizes.geo_layers):
        y = torch.relu(linear(s, f"geo_encoder.layers.{layer}.lin", x))
        inner = 0 < layer < sizes.geo_layers - 1
        x = norm(s, f"geo_encoder.layers.{layer}.layer_norm", y + x) if inner else y
    return x


def answers(s, image, query, geo_xy, sizes):
    """Everything that a file of vectors holds."""
    found, embeddings = {}, {}
    for short, encoder, part in (("sat", swin_v2, image[:, :9]), ("cov", swin_v1, image[:, 9:])):
        maps = encoder(s, f"{short}_encoder.feature_extractor.", part, sizes)
        stages = [implicit(s, f"{short}_encoder.query_layers.{i}", f, query) for i, f in enumerate(maps)]
        for stage, (features, value) in enumerate(zip(maps, stages)):
            found[f"{short}_feature_{stage}"] = features
            found[f"implicit_{short}_{stage}"] = value
        embeddings[short] = mapper(s, f"{short}_mapper", norm(s, f"{short}_encoder.norm", sum(stages)))
        found[f"{short}_emb"] = embeddings[short]
    found["visual_emb"] = mapper(s, "visual_mapper", embeddings["sat"] + embeddings["cov"])
    found["pred"] = found["visual_pred"] = head(s, "out", found["visual_emb"])
    found["geo_emb"] = mapper(s, "geo_mapper", geo(s, geo_xy, sizes))
    found["geo_pred"] = head(s, "geo_out", found["geo_emb"])
    return found
