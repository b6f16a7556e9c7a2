"""Caches of diffusers in the network of an accelerated pipeline."""

import copy

import pytest

diffusers = pytest.importorskip("diffusers", reason="the pipelines are diffusers'")
pytest.importorskip("transformers", reason="diffusers' pipelines with text import it")
import tiny_pipelines as tiny  # noqa: E402
import tiny_transformers as transformers  # noqa: E402
from golden_data import relative  # noqa: E402
from test_accelerate_transformers import CASES, shifted  # noqa: E402

from pndm_fast.integrations.diffusers import accelerate  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own, of its deprecations

CACHES = [
    ("FLUX guided", lambda: diffusers.FirstBlockCacheConfig(threshold=0.3)),
    ("Wan", lambda: diffusers.FirstBlockCacheConfig(threshold=0.3)),
    ("Wan of two networks", lambda: diffusers.SeaCacheConfig(threshold=0.5, retention_steps=1)),
]


@pytest.mark.parametrize("name, config", CACHES)
def test_caches_in_a_network(name, config):
    """They are told the same contexts: the same blocks are passed over."""
    make, scheduler = CASES[name]
    pipeline, call = make()
    networks = {part: copy.deepcopy(value) for part, value in pipeline.components.items() if "transformer" in part}
    ran, images = ([], []), []
    for network in networks.values():
        if network is not None:
            blocks = network.transformer_blocks if "FLUX" in name else network.blocks
            blocks.extend(copy.deepcopy(blocks[0]) for _ in range(2))
            network.enable_cache(config())
    pipeline = type(pipeline)(**{**pipeline.components, **networks}, **transformers.settings(pipeline))
    for made, each in zip((pipeline, accelerate(pipeline)), ran, strict=True):
        hooks = [
            (network.transformer_blocks if "FLUX" in name else network.blocks)[-1].norm1.register_forward_hook(
                lambda *_, each=each: each.append(1)
            )
            for network in networks.values()
            if network is not None
        ]
        images.append(tiny.run(made, scheduler(), steps=8, **call))
        for hook in hooks:
            hook.remove()
    assert relative(images[1].double(), images[0].double()) < 1e-5
    assert len(ran[0]) == len(ran[1]) < 16


def test_caches_that_ask_more():
    broadcast = diffusers.PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500
    )
    pipeline, call = tiny.wan()
    network = copy.deepcopy(pipeline.transformer)
    network.enable_cache(broadcast)
    fast = accelerate(diffusers.WanPipeline(**{**pipeline.components, "transformer": network}))
    with pytest.raises(ValueError, match="transformer must have no cache that asks the pipeline for its time"):
        tiny.run(fast, shifted(), **call)
