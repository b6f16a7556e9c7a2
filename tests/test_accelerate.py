"""`accelerate`: the images of the pipeline itself, from one call of a `Sampler`."""

import copy
import inspect
import pickle
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from unittest import mock

import pytest

diffusers = pytest.importorskip("diffusers", reason="the pipelines are diffusers'")
pytest.importorskip("transformers", reason="diffusers' pipelines with text import it")
import tiny_pipelines as tiny  # noqa: E402
import torch  # noqa: E402
from golden_data import relative  # noqa: E402
from test_pipelines import OF_ONE_CALL, SCHEDULERS, latent, some  # noqa: E402

import pndm_fast as pf  # noqa: E402
from pndm_fast.integrations.diffusers import PlanScheduler, accelerate  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own, of its deprecations


def fresh(kind="", channels=4):
    """A pipeline that a test may change, with a network of its own, and a call's arguments."""
    made, call = tiny.stable_diffusion(kind, channels)
    parts = {**made.components, "unet": copy.deepcopy(made.unet), "scheduler": latent("Euler")}
    return type(made)(**parts, requires_safety_checker=False), dict(call)


def counted(scheduler):
    """(steps of that scheduler, runs of a sampler), as they are made."""
    step, run = type(scheduler).step, pf.Sampler.run
    return (
        mock.patch.object(type(scheduler), "step", autospec=True, side_effect=step),
        mock.patch.object(pf.Sampler, "run", autospec=True, side_effect=run),
    )


def check(case, scheduler, *, tolerance=1e-5, **call):
    """Equal images, one run of a sampler, no step of the scheduler."""
    pipeline, arguments = case
    fast = accelerate(pipeline)
    want = tiny.run(pipeline, scheduler, **arguments, **call)
    stepping, running = counted(scheduler)
    with stepping as steps, running as runs:
        got = tiny.run(fast, scheduler, **arguments, **call)
    assert steps.call_count == 0 and runs.call_count == 1
    assert got.shape == want.shape and got.dtype == want.dtype
    assert relative(got.double(), want.double()) <= tolerance
    return fast


def refused(fast, match, error=ValueError, **call):
    """Before the network is called."""
    networks = [getattr(fast, name) for name in ("unet", "transformer") if hasattr(fast, name)]
    with mock.patch.object(type(networks[0]), "forward") as forward, pytest.raises(error, match=match):
        fast(num_inference_steps=5, **call)
    assert not forward.called


def interrupted(pipe, i, tensors):
    pipe._interrupt = i == 2
    return {"latents": tensors["latents"] + 1}


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


def seen_by(pipeline, name, change=None, **call):
    """What a callback sees at each step, and the image."""
    seen = []

    def callback(pipe, i, t, tensors):
        seen.append((i, float(t), *[tensors[name].clone() for name in sorted(tensors)]))
        return tensors if change is None else change(pipe, i, tensors)

    image = tiny.run(
        pipeline,
        latent(name),
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
        **call,
    )
    return seen, image


def doubled_once(pipe, i, tensors):
    return {"latents": tensors["latents"] * 2} if i == 1 else {}


def doubled_in_place(pipe, i, tensors):
    if i == 1:
        tensors["latents"].mul_(2)
    return tensors


@pytest.mark.parametrize("kind", ["", "Img2Img", "Inpaint"])
@pytest.mark.parametrize("change", [None, doubled_once, doubled_in_place, interrupted])
def test_callback_on_step_end(kind, change):
    pipeline, call = tiny.stable_diffusion(kind)
    want, image = seen_by(pipeline, "Euler", change, **call)
    got, ours = seen_by(accelerate(pipeline), "Euler", change, **call)
    assert relative(ours, image) < 1e-5 and len(got) == len(want)
    for step, wanted in zip(got, want, strict=True):
        assert step[:2] == wanted[:2]
        for one, other in zip(step[2:], wanted[2:], strict=True):
            assert relative(one, other) < 1e-5


def test_an_interruption_from_outside():
    pipeline, call = fresh()

    def change(_, i, tensors):
        pipeline._interrupt = i == 2
        return tensors

    want = seen_by(pipeline, "Euler", change, **call)[1]
    assert relative(seen_by(accelerate(pipeline), "Euler", change, **call)[1], want) < 1e-5
    assert pipeline._interrupt  # and the next call is none
    assert len(seen_by(accelerate(pipeline), "Euler", **call)[0]) == 5


def test_what_a_callback_must_leave():
    pipeline, call = fresh()

    def guided(pipe, i, tensors):
        pipe._guidance_scale = 2.0
        return {}

    def in_place(pipe, i, tensors):
        tensors["prompt_embeds"].add_(1)
        return {}

    for what, change in (
        ("prompt_embeds", lambda pipe, i, tensors: {"prompt_embeds": tensors["latents"]}),
        ("prompt_embeds", in_place),
        ("the guidance scale", guided),
    ):
        with pytest.raises(ValueError, match=f"callback_on_step_end must leave {what} as it is"):
            seen_by(accelerate(pipeline), "Euler", change, **call)
    with pytest.raises(ValueError, match="callback_on_step_end must leave negative_prompt_embeds as it is"):
        seen_by(accelerate(pipeline), "Euler", lambda *_: {"negative_prompt_embeds": torch.zeros(1)}, **call)
    with pytest.raises(TypeError, match="callback_on_step_end must return a dict, got NoneType"):
        seen_by(accelerate(pipeline), "Euler", lambda *_: None, **call)
    with pytest.raises(ValueError, match="must leave"):
        cutoff = diffusers.callbacks.SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=2)
        tiny.run(accelerate(pipeline), latent("Euler"), callback_on_step_end=cutoff, **call)
    with pytest.raises(ValueError, match="state"):  # of a predictor-corrector
        seen_by(accelerate(pipeline), "UniPC", doubled_once, **call)


class Ticks:
    """tqdm's place."""

    made = []

    def __init__(self, iterable=None, total=None, disable=False):
        self.iterable, self.n, self.disable = iterable, 0, disable
        self.total = len(iterable) if total is None else total
        self.made.append(self)

    def __iter__(self):
        for one in self.iterable:
            yield one
            self.update()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def close(self):
        pass

    def update(self, n=1):
        self.n += n


@pytest.mark.parametrize("name, kind", [("Euler", ""), ("Heun", ""), ("PNDM", "Img2Img")])
def test_the_progress_bar(name, kind):
    pipeline, call = fresh(kind)
    fast, pipeline.scheduler = accelerate(pipeline), latent(name)
    check_bar(pipeline, fast, {**call, "num_inference_steps": 5})


def test_the_progress_bar_of_pixels():
    pipeline = diffusers.DDPMPipeline(tiny.pixels(), diffusers.DDPMScheduler(prediction_type="sample"))
    check_bar(pipeline, accelerate(pipeline), {"num_inference_steps": 4, "output_type": "np"})


def check_bar(pipeline, fast, call):
    pipeline.set_progress_bar_config()
    with mock.patch("diffusers.pipelines.pipeline_utils.tqdm", Ticks):
        Ticks.made.clear()
        pipeline(**call)
        fast(**call)
        theirs, ours = Ticks.made
        assert (ours.total, ours.n) == (theirs.total, theirs.n) and ours.n
    pipeline.set_progress_bar_config(disable=True)
    noisy = type(pipeline) is diffusers.DDPMPipeline
    run = pf.Sampler.run
    with mock.patch.object(pf.Sampler, "run", autospec=True, side_effect=run) as runs:
        fast(**call)
    request = runs.call_args.args[1]
    assert request.on_step is None and (request.noise_sampler is None or noisy)  # no Python between rows


def test_a_strength_of_no_step():
    """diffusers' own schedulers then make no image."""
    pipeline, call = fresh("Img2Img")
    for one in (accelerate(pipeline), pipeline):
        refused(one, "begin_index must leave a call, got 5: is strength too low", **{**call, "strength": 0.01})
        pipeline.scheduler = PlanScheduler.from_config(latent("Euler"))


def test_it_is_the_pipeline():
    pipeline, call = fresh()
    fast = accelerate(pipeline)
    assert isinstance(fast, type(pipeline)) and type(fast).__name__ == "StableDiffusionPipeline"
    assert inspect.signature(fast.__call__) == inspect.signature(pipeline.__call__)
    assert fast.__call__.__doc__ == pipeline.__call__.__doc__ and fast.report is None
    fast.scheduler = latent("DDIM")
    assert pipeline.scheduler is fast.scheduler and pipeline.config == fast.config
    before = dict(pipeline.__dict__)
    fast(**call, num_inference_steps=2)
    assert pipeline.__dict__ == before  # a call leaves it as it was
    assert fast.report.nfe == 2 and fast.report.guidance == "batched"
    for again in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast)), accelerate(fast)):
        assert type(again) is type(fast) and again is not fast
        assert relative(tiny.run(again, latent("DDIM"), **call), tiny.run(fast, latent("DDIM"), **call)) == 0


def test_it_is_saved_as_the_pipeline(tmp_path):
    scheduler = diffusers.DDPMScheduler(prediction_type="sample")
    fast = accelerate(diffusers.DDPMPipeline(tiny.pixels(), scheduler))
    fast.save_pretrained(tmp_path)
    loaded = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    assert type(loaded) is diffusers.DDPMPipeline
    call = {"output_type": "np"}
    assert relative(tiny.run(loaded, scheduler, **call), tiny.run(fast, scheduler, **call)) < 1e-5


def test_its_class_makes_an_accelerated_one():
    pipeline, call = fresh()
    kind = type(accelerate(pipeline, graph="eager"))
    want = tiny.run(pipeline, latent("Euler"), **call)
    scheduler = latent("Euler")
    stepping, running = counted(scheduler)
    with stepping as steps, running as runs:
        assert relative(tiny.run(kind.from_pipe(pipeline), scheduler, **call), want) < 1e-5
    assert steps.call_count == 0 and runs.call_count == 1


def test_threads_share_one():
    pipeline, call = fresh()
    pipeline.set_progress_bar_config(disable=True)
    fast = accelerate(pipeline)

    def image(case):
        steps, seed, scale = case
        draw = torch.Generator().manual_seed(seed)
        return fast(**call, num_inference_steps=steps, generator=draw, guidance_scale=scale).images

    cases = [(3 + i % 4, i, 1.0 + i % 3) for i in range(12)]
    alone = [image(case) for case in cases]
    with ThreadPoolExecutor(4) as pool:
        assert all(map(torch.equal, pool.map(image, cases), alone))


def test_plans_and_samplers_are_kept():
    """So that later calls pay for neither, and graphs are captured once."""
    pipeline, call = fresh()
    fast = accelerate(pipeline)
    fast(**call, num_inference_steps=3)
    with mock.patch("pndm_fast.integrations.diffusers.plan_like") as made, mock.patch.object(pf.Sampler, "__init__"):
        fast(**call, num_inference_steps=3, guidance_scale=2.0)
    assert not made.called
    samplers = fast._kept.samplers
    assert len(samplers._made.values()) == 1
    pipeline.unet = copy.deepcopy(pipeline.unet)
    fast(**call, num_inference_steps=3)
    assert len(samplers._made.values()) == 1 and samplers._networks == (pipeline.unet,)


def test_what_is_refused():
    pipeline, call = fresh()
    fast = accelerate(pipeline)
    refused(fast, "callback must be None in an accelerated pipeline", callback=print, **call)
    refused(fast, "eta must not be given for EulerDiscreteScheduler", eta=0.3, **call)
    pipeline.scheduler = diffusers.SASolverScheduler()
    refused(fast, "SASolverScheduler", **call)
    with pytest.raises(ValueError, match="SASolverScheduler"):
        accelerate(pipeline)
    pipeline.scheduler = latent("Euler")
    pipeline.unet.is_cache_enabled = True
    refused(fast, "unet must have no cache enabled", **call)
    for name, value in (("graph", "captured"), ("backend", "cuda"), ("on_nan", "zero")):
        with pytest.raises(ValueError, match=f"{name} must be one of"):
            accelerate(pipeline, **{name: value})
    with pytest.raises(ValueError, match="graph 'replay' cannot be had: graphs need a CUDA device"):
        accelerate(fresh()[0], graph="replay")(**call, num_inference_steps=2)


def test_pipelines_that_are_not_known():
    class Own(diffusers.StableDiffusionPipeline):
        def __call__(self):
            pass

    for kind, why in (
        (diffusers.StableDiffusionControlNetPipeline, "a second network is called"),
        (diffusers.StableDiffusionInstructPix2PixPipeline, "its loop is not known"),
        (Own, "it has a __call__ of its own"),
        (object, "its loop is not known"),
    ):
        with pytest.raises(TypeError, match=f"pipe must be one of DDPMPipeline, .*, got {kind.__name__}: .*{why}"):
            accelerate(object.__new__(kind))


def test_outputs_that_are_not_finite():
    pipeline, call = fresh()
    torch.nn.init.constant_(pipeline.unet.conv_out.bias, float("nan"))
    with pytest.raises(pf.NonFiniteError):
        accelerate(pipeline)(**call, num_inference_steps=2)
    assert accelerate(pipeline, on_nan="ignore")(**call, num_inference_steps=2).images.isnan().all()
