"""Shapes from a network's configuration: taken where that is clear, else refused by name."""

import importlib
import inspect
import pkgutil
import types

import pytest
import torch
from network_kinds import DDIM
from torch import nn

import pndm_fast as pf
from pndm_fast import demo
from pndm_fast.loop.config_shape import sample_shape

# diffusers' classes whose configuration says a sample's shape, and that shape for in_channels 4 and sample_size 48;
# those of any other class are refused
PLANE = (4, 48, 48)
TAKEN = {
    "AuraFlowTransformer2DModel": PLANE,
    "CogVideoXTransformer3DModel": (13, 4, 60, 90),
    "CogView3PlusTransformer2DModel": PLANE,
    "CogView4Transformer2DModel": PLANE,
    "DiTTransformer2DModel": PLANE,
    "DreamLiteUNetModel": PLANE,
    "HunyuanDiT2DModel": PLANE,
    "Lumina2Transformer2DModel": PLANE,
    "LuminaNextDiT2DModel": PLANE,
    "PixArtTransformer2DModel": PLANE,
    "SD3Transformer2DModel": PLANE,
    "SanaTransformer2DModel": PLANE,
    "StableAudioDiTModel": (4, 48),
    "Transformer2DModel": PLANE,
    "UNet2DConditionModel": PLANE,
    "UNet2DModel": PLANE,
}


def of(name, **config):
    """A network of a class of that name."""
    net = type(name, (nn.Module,), {"forward": lambda self, x, timestep: x})().eval()
    net.config = config
    return net


def diffusers_classes():
    """(name, configuration) of all that have one, in any of its folders."""
    diffusers = pytest.importorskip("diffusers")
    for folder in ("unets", "transformers", "autoencoders", "controlnets"):
        package = importlib.import_module(f"diffusers.models.{folder}")
        for module in pkgutil.iter_modules(package.__path__):
            for name, kind in vars(importlib.import_module(f"{package.__name__}.{module.name}")).items():
                if inspect.isclass(kind) and issubclass(kind, diffusers.ConfigMixin) and "Mixin" not in name:
                    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
                    yield name, {p.name: p.default for p in parameters if p.default is not p.empty}


@pytest.mark.slow
def test_every_class_of_diffusers():
    seen = {}
    for name, config in diffusers_classes():
        sizes = {"in_channels": 4, "out_channels": 4, "sample_size": 48}
        config |= {key: value for key, value in sizes.items() if key in config}
        try:
            seen[name] = sample_shape(of(name, **config))
        except ValueError as refusal:
            assert str(refusal).startswith("shape must be given, (batch, ")
    assert seen == TAKEN


@pytest.mark.parametrize(
    "network, shape",
    [
        (of("Own", in_channels=3, sample_size=(8, 16)), (3, 8, 16)),
        (of("Own", in_channels=3, sample_size=[8]), (3, 8)),
        (of("Own", in_channels=3, sample_size=(5, 8, 8)), (3, 5, 8, 8)),
        (of("Own", in_channels=3, sample_size=torch.Size([8, 8]), out_channels=6), (3, 8, 8)),  # learned variance
        (of("Own", _class_name="UNet2DModel", in_channels=3, sample_size=8), (3, 8, 8)),
        (of("UNet2DConditionModel", in_channels=4, sample_size=(8, 16)), (4, 8, 16)),
        (nn.DataParallel(of("UNet2DModel", in_channels=3, sample_size=8)), (3, 8, 8)),
        (torch.compile(of("UNet2DModel", in_channels=3, sample_size=8), backend="eager"), (3, 8, 8)),
        (of("UNet2DModel", in_channels=3, sample_size=8).forward, (3, 8, 8)),
        (pf.Thresholded(of("UNet2DModel", in_channels=3, sample_size=8), DDIM), (3, 8, 8)),
        (type("Finetuned", (type(of("UNet2DModel")),), {"config": {"in_channels": 3, "sample_size": 8}})(), (3, 8, 8)),
        (demo.UNet(), (1, 28, 28)),
        (of("CogVideoXTransformer3DModel", in_channels=4, temporal_compression_ratio=4, sample_frames=9,
            sample_height=6, sample_width=8), (3, 4, 6, 8)),
    ],
)  # fmt: skip
def test_taken(network, shape):
    assert sample_shape(network) == shape


NOT_THERE = r"\(batch, ...\): model.config has no in_channels and sample_size"


@pytest.mark.parametrize(
    "network, message",
    [
        (lambda x, t: x, NOT_THERE),
        (of("Own"), NOT_THERE),
        (of("UNet2DModel", in_channels=None, sample_size=8), NOT_THERE),
        (of("UNet2DModel", in_channels=True, sample_size=8), NOT_THERE),
        (of("UNet2DModel", in_channels=3, sample_size="8"), NOT_THERE),
        (of("Own", in_channels=2, sample_size=65536), "sample_size 65536 of Own may mean several"),
        (of("AutoencoderKL", in_channels=3, sample_size=32), "sample_size 32 of AutoencoderKL may mean several"),
        (of("UVit2DModel", in_channels=768, sample_size=64), "may mean several"),
        (of("UNet2DModel", in_channels=3, sample_size=(8, 8, 8)), "may mean several"),
        (of("FluxTransformer2DModel", in_channels=64), r"\(batch, tokens, channels\): FluxTransformer2DModel packs"),
        (of("QwenImageTransformer2DModel", in_channels=64), r"\(batch, tokens, channels\): QwenImage"),
        (of("LTXVideoTransformer3DModel", in_channels=128), r"\(batch, tokens, channels\): LTXVideo"),
        (of("UNet3DConditionModel", in_channels=4, sample_size=32), "UNet3DConditionModel takes frames, and its"),
        (of("UNetMotionModel", in_channels=4, sample_size=32), "UNetMotionModel takes frames"),
        (of("WanTransformer3DModel", in_channels=16), "WanTransformer3DModel takes frames"),
        (of("CogVideoXTransformer3DModel", in_channels=16, temporal_compression_ratio=4, sample_frames=81,
            sample_height=96, sample_width=170, patch_size_t=2), "frames, and its config leaves open how many"),
        (of("UNet2DConditionModel", in_channels=9, out_channels=4, sample_size=64), "takes 9 channels and gives 4: "),
    ],
)  # fmt: skip
def test_refused(network, message):
    with pytest.raises(ValueError, match=f"^shape must be given, .*{message}"):
        pf.Sampler(network, DDIM)
    assert pf.Sampler(network, DDIM, shape=(2, 3, 8, 8)).shape == (2, 3, 8, 8)


def one_dimensional(first, **more):
    """diffusers' UNet1DModel."""
    blocks = dict(down_block_types=(first, "DownBlock1D"), up_block_types=("UpBlock1D", "UpBlock1DNoSkip"))
    return pytest.importorskip("diffusers").UNet1DModel(
        **dict(sample_size=32, in_channels=2, out_channels=2, block_out_channels=(32, 32)) | blocks | more
    )


@pytest.mark.parametrize(
    "more",
    [
        dict(extra_in_channels=64),
        dict(extra_in_channels=6, time_embedding_dim=6),
        dict(extra_in_channels=32, time_embedding_type="positional"),
        dict(extra_in_channels=0, in_channels=18, time_embedding_dim=16),
    ],
)
def test_the_channels_of_a_one_dimensional_network(more):
    """Its first block has the time's features behind the sample's channels; what is said is what it takes."""
    net = one_dimensional("DownBlock1DNoSkip", **more).eval()
    shape = sample_shape(net)
    with torch.no_grad():
        assert net(torch.zeros(2, *shape), torch.zeros(2)).sample.shape == (2, *shape) == (2, 2, 32)


def test_a_one_dimensional_network_that_takes_more_than_a_sample():
    for first, extra, took in (("DownResnetBlock1D", 3, 5), ("DownBlock1DNoSkip", 0, -14)):
        config = dict(in_channels=2, out_channels=2, sample_size=32, extra_in_channels=extra, block_out_channels=(8, 8))
        net = of("UNet1DModel", down_block_types=(first,), time_embedding_type="fourier", **config)
        with pytest.raises(ValueError, match=f"the network takes {took} channels and gives 2: what it takes besides"):
            sample_shape(net)


def test_other_records_than_dicts():
    net = of("UNet2DModel")
    net.config = types.SimpleNamespace(in_channels=3, sample_size=8)
    assert sample_shape(net) == (3, 8, 8)
