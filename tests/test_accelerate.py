"""`accelerate`: the images of the pipeline itself, from one call of a `Sampler`."""

import copy
from types import SimpleNamespace
from unittest import mock

import pytest

diffusers = pytest.importorskip("diffusers", reason="the pipelines are diffusers'")
pytest.importorskip("transformers", reason="diffusers' pipelines with text import it")
import tiny_pipelines as tiny  # noqa: E402
import torch  # noqa: E402
from accelerate_case import check, fresh, interrupted, refused  # noqa: E402
from golden_data import relative  # noqa: E402
from test_pipelines import OF_ONE_CALL, SCHEDULERS, latent, some  # noqa: E402

from pndm_fast.integrations.diffusers import PlanScheduler, accelerate  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own, of its deprecations


@pytest.mark.parametrize("name", SCHEDULERS)
def test_text_to_image(name):
    check(tiny.stable_diffusion(), latent(name))


@pytest.mark.parametrize("name", some(SCHEDULERS, "PNDM", "2M SDE", "Heun", "Euler"))
def test_image_to_image(name):
    check(tiny.stable_diffusion("Img2Img"), latent(name))


@pytest.mark.parametrize("name", some(OF_ONE_CALL, "DDIM", "2M SDE", "Euler a"))
@pytest.mark.parametrize("call", [{}, {"strength": 1.0, "guidance_scale": 1.0}], ids=["", "from noise, unguided"])
def test_inpainting(name, call):
    pipeline, arguments = tiny.stable_diffusion("Inpaint")
    check((pipeline, arguments | call), latent(name))


@pytest.mark.parametrize("name", some(SCHEDULERS, "PNDM", "Heun"))
def test_inpainting_of_a_network_that_is_told_the_mask(name):
    check(tiny.stable_diffusion("Inpaint", 9), latent(name))


def test_inpainting_of_a_solver_with_a_state_of_its_own_is_refused():
    pipeline, call = fresh("Inpaint")
    for name in ("PNDM", "UniPC", "Heun"):
        pipeline.scheduler = latent(name)
        refused(accelerate(pipeline), "scheduler must go on from a state that is put back in part", **call)


def test_inpainting_that_ends_in_a_step_is_refused():
    pipeline, call = tiny.stable_diffusion_xl("Inpaint")
    pipeline.scheduler = latent("Heun")
    with mock.patch.object(type(pipeline.unet), "forward") as forward, pytest.raises(ValueError, match="put back"):
        accelerate(pipeline)(**call, num_inference_steps=6, denoising_end=0.6)
    assert not forward.called


@pytest.mark.parametrize("name", ["Euler", "DPM++ 2M Karras"])
def test_stable_diffusion_xl(name):
    check(tiny.stable_diffusion_xl(), latent(name))
    check(tiny.stable_diffusion_xl(), latent(name), denoising_end=0.6, guidance_rescale=0.7)
    for kind in ("Img2Img", "Inpaint"):
        check(tiny.stable_diffusion_xl(kind), latent(name))
        check(tiny.stable_diffusion_xl(kind), latent(name), denoising_start=0.4, denoising_end=0.8)
    check(tiny.stable_diffusion_xl("Inpaint", 9), latent(name))


@pytest.mark.parametrize("kind, clip", [("DDPM", True), ("DDPM", False), ("DDIM", False)])
def test_pixels(kind, clip):
    scheduler = getattr(diffusers, f"{kind}Scheduler")(prediction_type="sample", clip_sample=clip)
    check((diffusers.DDPMPipeline(tiny.pixels(), scheduler), {"batch_size": 2, "output_type": "np"}), scheduler)


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_ddim_s_eta(eta):
    scheduler = diffusers.DDIMScheduler(clip_sample=False, prediction_type="sample")
    check((diffusers.DDIMPipeline(tiny.pixels(), scheduler), {"output_type": "np"}), scheduler, eta=eta)


def test_latent_consistency_models():
    check(tiny.consistency(), latent("LCM"))
    check(tiny.consistency(), latent("LCM"), original_inference_steps=20)
    for factor in (1.0, 1.1):
        change = lambda pipe, i, t, tensors, by=factor: {"latents": tensors["latents"] * by}  # noqa: E731
        for made in (tiny.consistency(), tiny.stable_diffusion(), tiny.stable_diffusion("Inpaint")):
            check(made, latent("LCM"), callback_on_step_end=change)  # others than the first show the last sample
    pipeline, call = tiny.consistency()
    call = call | {"callback_on_step_end": change, "callback_on_step_end_tensor_inputs": ["latents", "denoised"]}
    refused(accelerate(pipeline), "callback_on_step_end_tensor_inputs must not have 'denoised'", **call)


@pytest.mark.parametrize(
    "call",
    [
        {"guidance_scale": 3.0, "guidance_rescale": 0.6},
        {"guidance_scale": 1.0},
        {"num_images_per_prompt": 2, "eta": 0.5},
        {"latents": torch.ones(1, 4, 8, 8)},
        {"output_type": "np"},
    ],
    ids=["rescale", "unguided", "images, eta", "latents", "decoded"],
)
def test_arguments(call):
    pipeline, arguments = tiny.stable_diffusion()
    check((pipeline, arguments | call), latent("DDIM"))


def test_a_grid_of_the_caller_s():
    check(tiny.stable_diffusion(), latent("Euler"), timesteps=[900, 500, 20])


@pytest.mark.parametrize("name", ["Euler a", "2M SDE"])
def test_a_generator_for_each_sample(name):
    pipeline, call = fresh()
    call |= {"num_images_per_prompt": 2, "num_inference_steps": 3}
    pipeline.scheduler = latent(name)
    images = [
        one(generator=[torch.Generator().manual_seed(seed) for seed in (3, 4)], **call).images
        for one in (pipeline, accelerate(pipeline))
    ]
    assert relative(*images) < 1e-5
    torch.manual_seed(3)
    theirs = pipeline(**call).images
    torch.manual_seed(3)
    assert relative(accelerate(pipeline)(**call).images, theirs) < 1e-5


@pytest.mark.parametrize("name", ["Euler", "Euler a", "2M SDE", "DDIM", "DDPM", "LCM"])
@pytest.mark.parametrize(
    "more",
    [
        {"num_inference_steps": 3},
        {"num_inference_steps": 1},
        {"num_inference_steps": 5, "callback_on_step_end": lambda pipe, i, t, tensors: interrupted(pipe, i, tensors)},
        {"num_inference_steps": 3, "callback_on_step_end": lambda pipe, i, t, tensors: interrupted(pipe, i, tensors)},
    ],
    ids=["whole", "one step", "interrupted", "interrupted after the last step"],
)
def test_what_a_generator_gives_next(name, more):
    """Images after one another from one generator: of a step that adds no noise it is drawn where diffusers does."""
    pipeline, call = fresh()
    call |= {"eta": 0.7 if name == "DDIM" else 0.0, **more}
    made = []
    for scheduler, change in (
        (latent(name), lambda pipe: pipe),
        (latent(name), accelerate),
        (PlanScheduler.from_config(latent(name)), lambda pipe: pipe),
    ):
        pipeline.scheduler, generator = scheduler, torch.Generator().manual_seed(5)
        change(pipeline)(**call, generator=generator)
        made.append(torch.randn(4, generator=generator))
    assert torch.equal(made[1], made[0]) and torch.equal(made[2], made[0])


@pytest.mark.parametrize("solver", [None, "unipc", "dpmpp-2m", "heun", "euler-ancestral"])
def test_a_scheduler_of_ours(solver):
    """Then the pipeline's own loop makes the same rows, and the same bits but for guidance."""
    scheduler = PlanScheduler.from_config(latent("Euler"), solver)
    check(tiny.stable_diffusion(), scheduler)
    check(tiny.stable_diffusion("Img2Img"), scheduler, guidance_scale=1.0, tolerance=0.0)


@pytest.mark.parametrize(
    "change",
    [
        lambda unet: unet.to(torch.bfloat16),
        lambda unet: torch.compile(unet, backend="eager"),
        lambda unet: unet.to(memory_format=torch.channels_last),
    ],
    ids=["bfloat16", "compiled", "channels_last"],
)
def test_networks_of_other_kinds(change):
    """The state is float32 whatever they are, as `PlanScheduler` has it."""
    pipeline, call = fresh()
    pipeline.unet = change(pipeline.unet)
    call |= {name: value.to(pipeline.unet.dtype) for name, value in call.items() if name.endswith("_embeds")}
    check((pipeline, call), PlanScheduler.from_config(latent("UniPC")), guidance_scale=1.0, tolerance=0.0)


@pytest.mark.parametrize("mode", [torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_modes_of_torch(mode):
    with mode():
        check(fresh(), PlanScheduler.from_config(latent("Euler a")), guidance_scale=1.0, tolerance=0.0)
    check(fresh(), latent("Euler a"))


def test_embeddings_of_an_image():
    """IP-adapters: what their image gives is conditioning, their scale the network's own."""
    pipeline, call = fresh()
    unet, draw = pipeline.unet, torch.Generator().manual_seed(5)
    attentions = [name.removesuffix(".processor") for name in unet.attn_processors if "attn2" in name]
    keys = {
        f"{2 * i + 1}.to_{kind}_ip.weight": torch.randn(unet.get_submodule(name).to_q.out_features, 8, generator=draw)
        for i, name in enumerate(attentions)
        for kind in "kv"
    }
    image = {"proj.weight": torch.randn(32, 6, generator=draw), "proj.bias": torch.zeros(32)}
    image |= {"norm.weight": torch.ones(8), "norm.bias": torch.zeros(8)}
    unet._load_ip_adapter_weights([{"image_proj": image, "ip_adapter": keys}])
    embeddings = [torch.randn(2, 1, 6, generator=draw)]
    seen = {}
    for scale in (0.5, 0.2):
        pipeline.set_ip_adapter_scale(scale)
        check((pipeline, call), latent("Euler"), ip_adapter_image_embeds=embeddings)
        seen[scale] = tiny.run(pipeline, latent("Euler"), **call, ip_adapter_image_embeds=embeddings)
    assert relative(seen[0.2], seen[0.5]) > 1e-3


def test_modules_that_are_replaced():
    """As adapters of low rank are loaded and unloaded."""

    class LowRank(torch.nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base, self.down = base, torch.nn.Linear(base.in_features, 1)
            self.up = torch.nn.Linear(1, base.out_features)

        def forward(self, x):
            return self.base(x) + self.up(self.down(x))

    pipeline, call = fresh()
    fast, attention = accelerate(pipeline), pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    images = []
    for layer in (attention.to_v, LowRank(attention.to_v), attention.to_v):
        attention.to_v = layer
        images.append(tiny.run(fast, latent("Euler"), **call))
        assert relative(images[-1], tiny.run(pipeline, latent("Euler"), **call)) < 1e-5
    assert torch.equal(images[0], images[2]) and not torch.equal(images[0], images[1])
    other = copy.deepcopy(pipeline.unet)
    torch.nn.init.zeros_(other.conv_out.weight)
    pipeline.unet = other
    assert relative(tiny.run(fast, latent("Euler"), **call), tiny.run(pipeline, latent("Euler"), **call)) < 1e-5


def test_hooks_of_offloading():
    """They run, since the module is called; afterwards they are put back on the pipeline's own modules."""
    pipeline, call = fresh()
    forward, ran = pipeline.unet.forward, []
    pipeline.unet.forward = lambda *args, **cond: ran.append(0) or forward(*args, **cond)
    pipeline.unet._hf_hook = SimpleNamespace()
    pipeline._all_hooks = [pipeline.unet._hf_hook]
    fast = accelerate(pipeline)
    with mock.patch.object(type(pipeline), "enable_model_cpu_offload", autospec=True) as offload:
        tiny.run(fast, latent("Euler"), **call)
    assert len(ran) == 5
    assert [one.args[0] for one in offload.call_args_list] == [fast]
    from pndm_fast.integrations.denoise import Call

    for graph, found in (("auto", "eager"), ("eager", "eager")):
        kept = accelerate(pipeline, graph=graph)._kept
        loop = Call(pipeline, kept, {"callback_on_step_end": None})
        assert loop._graph_of({"unet": pipeline.unet}, torch.device("cuda"))[0] == found
    kept.graph = "replay"
    with pytest.raises(ValueError, match="graph 'replay' cannot be had: the network has hooks"):
        loop._graph_of({"unet": pipeline.unet}, torch.device("cuda"))
