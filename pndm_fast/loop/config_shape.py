"""The shape of a sample, where a network's configuration leaves no doubt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pndm_fast.loop.layers import innermost, layers
from pndm_fast.plan.numbers import is_integer

# diffusers' classes by what an integer `sample_size` means there; of any other class it means nothing
PLANES = frozenset(
    "UNet2DModel UNet2DConditionModel DreamLiteUNetModel DiTTransformer2DModel Transformer2DModel "
    "PixArtTransformer2DModel SD3Transformer2DModel SanaTransformer2DModel AuraFlowTransformer2DModel "
    "HunyuanDiT2DModel CogView3PlusTransformer2DModel CogView4Transformer2DModel LuminaNextDiT2DModel "
    "Lumina2Transformer2DModel".split()
)
LINES = frozenset({"UNet1DModel", "StableAudioDiTModel"})
FRAMES_FIRST = frozenset({"CogVideoXTransformer3DModel"})
# where the state is packed, so that channels come last
TOKENS = frozenset(
    "FluxTransformer2DModel Flux2Transformer2DModel Flux3Transformer2DModel ChromaTransformer2DModel "
    "BriaTransformer2DModel BriaFiboTransformer2DModel LongCatImageTransformer2DModel OvisImageTransformer2DModel "
    "QwenImageTransformer2DModel QwenImage21Transformer2DModel NucleusMoEImageTransformer2DModel "
    "Krea2Transformer2DModel Ideogram4Transformer2DModel LTXVideoTransformer3DModel".split()
)
FRAMES = ("3D", "Video", "Motion", "SpatioTemporal", "I2VGen")  # in the name of a network of moving pictures

Told = Callable[[str], Any]  # what a configuration says of a key


def sample_shape(model: Any) -> tuple[int, ...]:
    """(C, H, W), (C, L) or (F, C, H, W) from `model.config`, as diffusers and `pndm_fast.demo` write it.

    `in_channels`, and `sample_size` as integers for each dimension, or as one where the class says what it stands for.

    Raises:
        ValueError: it is not there, or could mean several things.
    """
    config = next((c for part in layers(model) if (c := getattr(part, "config", None)) is not None), None)
    told: Told = config.get if isinstance(config, Mapping) else lambda key: getattr(config, key, None)
    names = [str(told("_class_name") or ""), *(kind.__name__ for kind in type(innermost(model)).__mro__)]
    shown, known = names[0] or names[1], set(names).intersection
    if known(TOKENS):
        raise _unknown(f"{shown} packs its input, and its config does not say to how many", "(batch, tokens, channels)")
    if known(FRAMES_FIRST):
        frames, sizes = _frames_and_sizes(told, shown)
        return frames, _channels(told, told("in_channels")), *sizes
    if any(word in name for name in names for word in FRAMES):
        raise _unknown(f"{shown} takes frames, and its config does not say how many")
    channels, size = told("in_channels"), told("sample_size")
    several = isinstance(size, Sequence) and all(map(is_integer, size))
    if not is_integer(channels) or not (several or is_integer(size)):
        raise _unknown("model.config has no in_channels and sample_size")
    dimensions = 2 if known(PLANES) else 1 if known(LINES) else len(size) if several else 0
    if not dimensions or (several and len(size) != dimensions):
        raise _unknown(f"sample_size {size!r} of {shown} may mean several, as (height, width) would not")
    channels = _channels(told, _input_channels(told, channels) if known(LINES) else channels)
    return channels, *map(int, size if several else [size] * dimensions)


def _channels(told: Told, channels: Any) -> int:
    """Of the sample: what the network takes, if it gives as many, or as many again for a variance."""
    given = told("out_channels")
    if not is_integer(channels) or channels < 1 or (is_integer(given) and given not in (channels, 2 * channels)):
        raise _unknown(
            f"the network takes {channels} channels and gives {given}: what it takes besides a sample must be given "
            f"in a function around it"
        )
    return int(channels)


def _input_channels(told: Told, channels: int) -> int:
    """Of a `UNet1DModel`: its first block may take more, or have the time's features behind them."""
    channels += told("extra_in_channels") or 0
    if (told("down_block_types") or [None])[0] != "DownBlock1DNoSkip":
        return channels
    width = told("block_out_channels")[0]
    fourier = told("time_embedding_type") == "fourier"
    return int(channels - ((told("time_embedding_dim") or 2 * width) if fourier else width))


def _frames_and_sizes(told: Told, shown: str) -> tuple[int, tuple[int, int]]:
    """Of CogVideoX: `sample_frames` counts those of the film, height and width are what the network has."""
    keys = "sample_frames", "temporal_compression_ratio", "sample_height", "sample_width"
    values = [told(key) for key in keys]
    if not all(map(is_integer, values)) or told("patch_size_t") is not None:
        raise _unknown(f"{shown} takes frames, and its config leaves open how many", "(batch, frames, channels, ...)")
    frames, ratio, height, width = values
    return int((frames - 1) // ratio + 1), (int(height), int(width))


def _unknown(why: str, form: str = "(batch, ...)") -> ValueError:
    return ValueError(f"shape must be given, {form}: {why}")
