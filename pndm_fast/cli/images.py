"""Samples as pictures: conversion to bytes, contact sheets, and files that remember the recipe they were made by."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pndm_fast.plan.atomic import atomic_path

Bytes = NDArray[np.uint8]

_KEY = "pndm_fast"  # tEXt chunk of a PNG
_PADDING = 2  # pixels between and around the pictures of a grid


def to_uint8(x: Tensor | NDArray[Any]) -> Bytes:
    """Samples in [-1, 1] as bytes: round((x + 1) 127.5), half to even, clipped.

    Args:
        x: floating, [B, C, H, W], C is 1 or 3.

    Returns:
        [B, H, W, C].

    Raises:
        ValueError: another shape or dtype, or a sample with NaN, named by its index. Infinities are clipped.
    """
    if isinstance(x, Tensor):
        # numpy has no bfloat16; float32 holds it exactly
        x = (x.detach() if x.element_size() > 2 else x.detach().float()).cpu().numpy()
    if not np.issubdtype(x.dtype, np.floating):
        raise ValueError(f"samples must be floating in [-1, 1], got {x.dtype}")
    if x.ndim != 4:
        raise ValueError(f"samples must be [B, C, H, W], got shape {list(x.shape)}")
    _check_channels(x.shape[1])
    bad = np.flatnonzero(np.isnan(x).any(axis=(1, 2, 3)))
    if len(bad):
        raise ValueError(f"samples must have no NaN, got some in sample {bad[0]} ({len(bad)} of {len(x)} samples)")
    # float64 so that a half of a float16 or float32 input is a half
    scaled = np.rint((x.astype(np.float64) + 1) * 127.5).clip(0, 255)
    return np.ascontiguousarray(scaled.astype(np.uint8).transpose(0, 2, 3, 1))


def grid(images: Bytes, columns: int | None = None) -> Bytes:
    """One black sheet [H', W', C] with the images [B, H, W, C] row by row, two pixels apart.

    Args:
        columns: pictures in a row; None is the number nearest to a square.
    """
    if images.ndim != 4 or images.dtype != np.uint8:
        raise ValueError(f"images must be uint8 [B, H, W, C], got {images.dtype} {list(images.shape)}")
    n, height, width, channels = images.shape
    if n == 0:
        raise ValueError("images must be at least one, got 0")
    if columns is not None and columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    columns = min(columns or math.ceil(math.sqrt(n)), n)
    rows = math.ceil(n / columns)
    dy, dx = height + _PADDING, width + _PADDING
    sheet = np.zeros((rows * dy + _PADDING, columns * dx + _PADDING, channels), np.uint8)
    for i, image in enumerate(images):
        y, x = _PADDING + i // columns * dy, _PADDING + i % columns * dx
        sheet[y : y + height, x : x + width] = image
    return sheet


def save_png(path: str | Path, image: Bytes, recipe: Mapping[str, Any] | None = None) -> None:
    """Writes one picture uint8 [H, W, C], C is 1 or 3, with `recipe` as JSON in a tEXt chunk.

    Raises:
        ImportError: Pillow is not installed.
    """
    if image.ndim != 3 or image.dtype != np.uint8:
        raise ValueError(f"image must be uint8 [H, W, C], got {image.dtype} {list(image.shape)}")
    _check_channels(image.shape[2])
    pillow, png = _pillow()
    info = png.PngInfo()
    if recipe is not None:
        info.add_text(_KEY, json.dumps(recipe))
    picture = pillow.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG", pnginfo=info)


def read_recipe(path: str | Path) -> dict[str, Any] | None:
    """The recipe stored in a PNG or NPZ file of this module, None where there is none."""
    if Path(path).suffix.lower() == ".npz":
        with np.load(path, allow_pickle=False) as file:
            text = str(file["recipe"]) if "recipe" in file else None
    else:
        with _pillow()[0].open(path) as picture:
            text = picture.info.get(_KEY)
    if text is None:
        return None
    recipe: dict[str, Any] = json.loads(text)
    return recipe


def read_pixels(path: str | Path) -> Bytes:
    """The bytes of a PNG or NPZ file of this module: [H, W] or [H, W, 3], or [B, H, W, C]."""
    if Path(path).suffix.lower() == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return np.asarray(file["arr_0"])
    with _pillow()[0].open(path) as picture:
        return np.asarray(picture)


def save_npz(path: str | Path, images: Bytes, recipe: Mapping[str, Any] | None = None) -> None:
    """Writes uint8 [B, H, W, C] as `arr_0`, what ADM's evaluator reads (Dhariwal, Nichol 2021, arXiv:2105.05233)."""
    if images.ndim != 4 or images.dtype != np.uint8:
        raise ValueError(f"images must be uint8 [B, H, W, C], got {images.dtype} {list(images.shape)}")
    extra = {} if recipe is None else {"recipe": np.array(json.dumps(recipe))}
    with atomic_path(path) as temporary, open(temporary, "wb") as file:  # a file: np.savez would append .npz to a name
        np.savez(file, allow_pickle=False, arr_0=images, **extra)


def _check_channels(channels: int) -> None:
    if channels == 4:
        raise ValueError("pictures must have 1 or 3 channels, got 4: latents? decode them with the model's VAE first")
    if channels not in (1, 3):
        raise ValueError(f"pictures must have 1 or 3 channels, got {channels}")


def _pillow() -> tuple[Any, Any]:
    try:
        from PIL import Image, PngImagePlugin
    except ImportError as error:
        raise ImportError("PNG files need Pillow: pip install 'pndm_fast[images]'") from error
    return Image, PngImagePlugin
