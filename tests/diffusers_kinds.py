"""diffusers' networks, tiny, as `network_kinds` has others."""

import torch
from network_kinds import LABELS, V, filled, flow, kind, slow

import pndm_fast as pf


def made(name, **config):
    import diffusers

    return filled(getattr(diffusers, name)(**config))


def normal(*shape, seed=5):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


SMALL_UNET = dict(sample_size=8, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4)
FLAT = dict(down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)
TEXT = normal(2, 5, 8)


@kind
def unet_2d():
    net = made("UNet2DModel", **SMALL_UNET, **FLAT)
    return pf.sample(net, **V), lambda x, t: net(x, t).sample, "v"


@kind
def unet_2d_stored_in_float8():
    net = made("UNet2DModel", **SMALL_UNET, **FLAT)
    net.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    return pf.sample(net, **V), lambda x, t: net(x, t).sample, "v"


@kind
@slow
def unet_2d_condition_guided():
    blocks = dict(
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")
    )
    net = made("UNet2DConditionModel", **SMALL_UNET, **blocks, cross_attention_dim=8, attention_head_dim=4)
    cond, uncond = {"encoder_hidden_states": TEXT}, {"encoder_hidden_states": torch.zeros(2, 5, 8)}

    def guided(x, t):
        with_text, without = (net(x, t, **tree).sample for tree in (cond, uncond))
        return without + 2.5 * (with_text - without)

    return pf.sample(net, cond=cond, uncond=uncond, guidance=2.5, **V), guided, "v"


@kind
@slow
def unet_1d():
    blocks = dict(down_block_types=("DownResnetBlock1D",) * 2, up_block_types=("UpResnetBlock1D",))
    layout = dict(sample_size=16, in_channels=4, out_channels=4, block_out_channels=(8, 16), norm_num_groups=4)
    time = dict(time_embedding_type="positional", use_timestep_embedding=True, freq_shift=1.0, act_fn="mish")
    ends = dict(mid_block_type="MidResTemporalBlock1D", out_block_type="OutConv1DBlock")
    net = made("UNet1DModel", **blocks, **layout, **time, **ends)
    return pf.sample(net, **V), lambda x, t: net(x, t).sample, "v"


@kind
@slow
def unet_3d():
    blocks = dict(
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"), up_block_types=("UpBlock3D", "CrossAttnUpBlock3D")
    )
    net = made("UNet3DConditionModel", **SMALL_UNET, **blocks, cross_attention_dim=8, attention_head_dim=4)
    samples = pf.sample(net, shape=(2, 4, 3, 8, 8), cond={"encoder_hidden_states": TEXT}, **V)
    return samples, lambda x, t: net(x, t, encoder_hidden_states=TEXT).sample, "v"


@kind
def dit():
    net = made(
        "DiTTransformer2DModel",
        sample_size=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=4,
        out_channels=8,
        num_embeds_ada_norm=10,
    )
    return (
        pf.sample(net, cond={"class_labels": LABELS}, **V),
        lambda x, t: net(x, timestep=t, class_labels=LABELS).sample[:, :4],
        "v",
    )


@kind
def pixart():
    net = made(
        "PixArtTransformer2DModel",
        sample_size=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=8,
        caption_channels=8,
        use_additional_conditions=False,
    )
    cond = {"encoder_hidden_states": TEXT, "added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}
    return pf.sample(net, cond=cond, **V), lambda x, t: net(x, timestep=t, **cond).sample[:, :4], "v"


@kind
def sd3_guided():
    net = made(
        "SD3Transformer2DModel", sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=1,
        attention_head_dim=8, num_attention_heads=2, caption_projection_dim=16, joint_attention_dim=8,
        pooled_projection_dim=8, pos_embed_max_size=8,
    )  # fmt: skip
    cond = {"encoder_hidden_states": TEXT, "pooled_projections": normal(2, 8)}
    uncond = {key: torch.zeros_like(value) for key, value in cond.items()}

    def guided(x, t):
        with_text, without = (net(x, timestep=t, **tree).sample for tree in (cond, uncond))
        return without + 4 * (with_text - without)

    return pf.sample(net, cond=cond, uncond=uncond, guidance=4.0, **flow(1000.0)), guided, 1000.0


@kind
def sana():
    net = made(
        "SanaTransformer2DModel",
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=8,
    )
    return (
        pf.sample(net, cond={"encoder_hidden_states": TEXT}, **flow(1000.0)),
        lambda x, t: net(x, TEXT, t).sample,
        1000.0,
    )


@kind
def flux():
    net = made(
        "FluxTransformer2DModel",
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )
    own = {"encoder_hidden_states": TEXT, "pooled_projections": normal(2, 8), "guidance": torch.full((2,), 3.5)}
    ids = {"img_ids": normal(6, 3), "txt_ids": torch.zeros(5, 3)}
    cond = own | {key: pf.Shared(value) for key, value in ids.items()}
    return (
        pf.sample(net, shape=(2, 6, 4), cond=cond, **flow(1.0)),
        lambda x, t: net(x, timestep=t, **own, **ids).sample,
        1.0,
    )


@kind
def cogvideox():
    net = made(
        "CogVideoXTransformer3DModel",
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=8,
        num_layers=1,
        sample_width=8,
        sample_height=6,
        sample_frames=9,
        max_text_seq_length=5,
    )
    samples = pf.sample(net, cond={"encoder_hidden_states": TEXT}, **V)
    assert samples.shape[1:] == (3, 4, 6, 8)
    return samples, lambda x, t: net(x, TEXT, t).sample, "v"


@kind
def ltx():
    net = made(
        "LTXVideoTransformer3DModel",
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=1,
        caption_channels=8,
    )
    cond = {"encoder_hidden_states": TEXT, "encoder_attention_mask": torch.ones(2, 5)}
    size = {"num_frames": 2, "height": 2, "width": 3}
    return (
        pf.sample(net, shape=(2, 12, 4), cond=cond | size, **flow(1000.0)),
        lambda x, t: net(x, timestep=t, **cond, **size).sample,
        1000.0,
    )


WAN = dict(
    patch_size=(1, 2, 2),
    num_attention_heads=2,
    attention_head_dim=12,
    in_channels=4,
    out_channels=4,
    text_dim=8,
    freq_dim=16,
    ffn_dim=16,
    num_layers=1,
    rope_max_seq_len=32,
)


@kind
def wan():
    net = made("WanTransformer3DModel", **WAN)
    samples = pf.sample(net, shape=(2, 4, 2, 8, 8), cond={"encoder_hidden_states": TEXT}, **flow(1000.0))
    return samples, lambda x, t: net(x, t, TEXT).sample, 1000.0


@kind
@slow
def wan_in_bfloat16():
    net = made("WanTransformer3DModel", **WAN)
    for name, p in net.named_parameters():  # as a pipeline loads it
        if not any(part in name for part in net._keep_in_fp32_modules):
            p.data = p.data.bfloat16()
    assert next(net.parameters()).dtype is torch.float32
    cond = {"encoder_hidden_states": TEXT.bfloat16()}
    samples = pf.sample(net, shape=(2, 4, 2, 8, 8), cond=cond, **flow(1000.0))
    return samples, lambda x, t: net(x.bfloat16(), t, **cond).sample, 1000.0


@kind
def qwen_image():
    net = made(
        "QwenImageTransformer2DModel",
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        axes_dims_rope=(4, 4, 8),
    )
    own = {"encoder_hidden_states": TEXT, "encoder_hidden_states_mask": torch.ones(2, 5, dtype=torch.bool)}
    sizes = [[(1, 2, 3)]] * 2
    samples = pf.sample(net, shape=(2, 6, 16), cond=own | {"img_shapes": pf.Shared(sizes)}, **flow(1.0))
    return samples, lambda x, t: net(x, timestep=t, img_shapes=sizes, **own).sample, 1.0
