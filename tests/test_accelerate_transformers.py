"""`accelerate` on pipelines around transformers: their own images, by one call of a `Sampler`."""

from __future__ import annotations

from typing import Any

import pytest

diffusers = pytest.importorskip("diffusers", reason="the pipelines are diffusers'")
pytest.importorskip("transformers", reason="diffusers' pipelines with text import it")
import tiny_pipelines as tiny  # noqa: E402
import tiny_transformers as transformers  # noqa: E402
import torch  # noqa: E402
from golden_data import relative  # noqa: E402

import pndm_fast as pf  # noqa: E402
from pndm_fast.integrations.diffusers import PlanScheduler, accelerate  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own, of its deprecations

DPM, FLOW = diffusers.DPMSolverMultistepScheduler, diffusers.FlowMatchEulerDiscreteScheduler
V = {"prediction_type": "v_prediction"}  # whose latents stay as large as the noise


def shifted(**options):
    return diffusers.UniPCMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=5.0, **options
    )


CASES: dict[str, tuple[Any, Any]] = {
    "DiT": (tiny.dit, lambda: diffusers.DDIMScheduler(clip_sample=False)),
    "PixArt-alpha": (transformers.pixart, lambda: DPM(**V)),
    "PixArt-alpha told the resolution": (lambda: transformers.pixart(size=128), lambda: DPM(**V)),
    "PixArt-sigma": (lambda: transformers.pixart("Sigma", variance=False), lambda: DPM(**V)),
    "SD3": (tiny.stable_diffusion_3, lambda: FLOW(shift=3.0)),
    "SD3 from an image": (
        lambda: transformers.stable_diffusion_3("Img2Img"),
        lambda: FLOW(use_dynamic_shifting=True),
    ),
    "SD3 shown images": (transformers.stable_diffusion_3_with_image, lambda: FLOW(shift=3.0)),
    "SD3 in a part": (lambda: transformers.stable_diffusion_3("Inpaint"), lambda: FLOW(shift=3.0)),
    "SD3 told the mask": (lambda: transformers.stable_diffusion_3("Inpaint", 33), lambda: FLOW(shift=3.0)),
    "FLUX": (tiny.flux, lambda: FLOW(use_dynamic_shifting=True)),
    "FLUX guided": (transformers.flux, lambda: FLOW(use_dynamic_shifting=True)),
    "FLUX from an image": (lambda: transformers.flux("Img2Img"), lambda: FLOW(use_dynamic_shifting=True)),
    "FLUX in a part": (lambda: transformers.flux("Inpaint"), lambda: FLOW(use_dynamic_shifting=True)),
    "FLUX that is shown what to change": (
        lambda: transformers.flux("Kontext"),
        lambda: FLOW(use_dynamic_shifting=True),
    ),
    "FLUX that fills": (lambda: transformers.flux_behind("Fill"), lambda: FLOW(use_dynamic_shifting=True)),
    "FLUX that is shown edges": (lambda: transformers.flux_behind("Control"), lambda: FLOW(use_dynamic_shifting=True)),
    "FLUX shown images": (transformers.flux_with_image, lambda: FLOW(use_dynamic_shifting=True)),
    "Wan": (tiny.wan, shifted),
    "Wan from a video": (transformers.wan_from_video, shifted),
    "Wan of two networks": (lambda: transformers.wan(two=True), shifted),
    "Wan told times of tokens": (lambda: transformers.wan(expand=True), shifted),
    "Wan from an image": (transformers.wan_from_image, shifted),
    "Wan from an image, of two networks": (lambda: transformers.wan_from_image(two=True), shifted),
    "Wan from an image in its place": (lambda: transformers.wan_from_image(expand=True), shifted),
}


@pytest.fixture
def runs(monkeypatch):
    """The requests that samplers were given."""
    seen, run = [], pf.Sampler.run

    def counted(sampler, request):
        seen.append(request)
        return run(sampler, request)

    monkeypatch.setattr(pf.Sampler, "run", counted)
    return seen


def forbid_steps(monkeypatch, scheduler):
    def step(*args, **kwargs):
        raise AssertionError("the scheduler was asked for a step")

    monkeypatch.setattr(type(scheduler), "step", step)


def check(case, scheduler, **call):
    """The same images, the accelerated first."""
    pipeline, arguments = case
    torch.manual_seed(5)  # some pipelines give their schedulers no generator
    got = tiny.run(accelerate(pipeline), scheduler, **arguments, **call)
    torch.manual_seed(5)
    want = tiny.run(pipeline, scheduler, **arguments, **call)
    assert got.shape == want.shape and got.dtype == want.dtype
    assert relative(got.double(), want.double()) < 1e-5


@pytest.mark.parametrize("name", CASES)
def test_images(name, runs, monkeypatch):
    """Those of the pipeline, by one call, no step of the scheduler and no call of the network more than it needs."""
    make, scheduler = CASES[name]
    (pipeline, call), scheduler = make(), scheduler()
    want = tiny.run(pipeline, scheduler, **call)
    forbid_steps(monkeypatch, scheduler)
    fast, calls = accelerate(pipeline), []
    networks = [part for name, part in pipeline.components.items() if "transformer" in name and part is not None]
    hooks = [network.register_forward_hook(lambda *_: calls.append(1)) for network in networks]
    got = tiny.run(fast, scheduler, **call)
    for hook in hooks:
        hook.remove()
    assert relative(got.double(), want.double()) < 1e-5
    assert len(runs) == 1 and len(calls) == fast.report.calls
    assert pipeline.scheduler is scheduler and scheduler.timesteps is not None
    again = tiny.run(fast, scheduler, **call)
    assert torch.equal(again, got)


@pytest.mark.parametrize("name", CASES)
def test_bars(name, bars):
    """As far as the pipeline's own, and none where it is disabled."""
    make, scheduler = CASES[name]
    pipeline, call = make()
    fast = accelerate(pipeline)
    for made in (pipeline, fast):
        made.scheduler = scheduler()
        made.set_progress_bar_config()
        made(num_inference_steps=4, generator=torch.Generator().manual_seed(1), **call)
        made.set_progress_bar_config(disable=True)
        made(num_inference_steps=4, generator=torch.Generator().manual_seed(1), **call)
    ours, theirs = bars[1], bars[0]
    assert len(bars) == 2 and (ours.n, ours.total) == (theirs.n, theirs.total)


@pytest.mark.parametrize("name", ["SD3", "FLUX guided"])
def test_images_that_are_shown(name):
    """Are seen, and so are those that are shown against them."""
    shown = {"SD3": transformers.stable_diffusion_3_with_image, "FLUX guided": transformers.flux_with_image}[name]
    pipeline, call = shown()
    fast, scheduler = accelerate(pipeline), CASES[name][1]()
    image = tiny.run(fast, scheduler, **call)
    for word in [word for word in call if "ip_adapter" in word]:
        changed = [-one for one in call[word]] if isinstance(call[word], list) else -call[word]
        assert relative(tiny.run(fast, scheduler, **call | {word: changed}), image) > 1e-3


UNGUIDED = [
    *[(name, {"guidance_scale": 1.0}) for name in ("DiT", "PixArt-alpha", "SD3", "Wan", "Wan of two networks")],
    *[("FLUX guided", {"true_cfg_scale": 1.0}), ("FLUX from an image", {"true_cfg_scale": 1.0})],
]


@pytest.mark.parametrize("name, call", UNGUIDED)
def test_without_guidance(name, call, runs):
    make, scheduler = CASES[name]
    pipeline, arguments = make()
    check((pipeline, arguments | call), scheduler())
    assert runs[0].uncond is None


@pytest.mark.parametrize("scales", [{"guidance_scale_2": 2.0}, {"guidance_scale_2": 1.0}, {"guidance_scale": 3.0}])
def test_each_network_has_its_scale(scales):
    pipeline, call = transformers.wan(two=True)
    check((pipeline, call | scales), shifted(), steps=6)


@pytest.mark.parametrize("boundary, network", [(0.0, "transformer"), (1.0, "transformer_2")])
def test_a_network_that_no_row_needs(boundary, network):
    """May be missing."""
    pipeline, call = transformers.wan(two=True)
    parts = {name: part if "transformer" not in name or name == network else None
             for name, part in pipeline.components.items()}  # fmt: skip
    check((diffusers.WanPipeline(**parts, boundary_ratio=boundary), call), shifted())


@pytest.mark.parametrize("name", ["PixArt-alpha", "SD3", "FLUX guided", "Wan", "Wan from an image in its place"])
def test_several_of_a_prompt(name):
    """With a generator for each."""
    make, scheduler = CASES[name]
    pipeline, call = make()
    if name == "SD3":  # whose embeddings are as many as the images
        call = {key: torch.cat([v] * 2) if isinstance(v, torch.Tensor) else v for key, v in call.items()}
    word = "num_videos_per_prompt" if "Wan" in name else "num_images_per_prompt"
    images = []
    for made in (accelerate(pipeline), pipeline):
        made.scheduler = scheduler()
        generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
        made.set_progress_bar_config(disable=True)
        images.append(made(num_inference_steps=4, generator=generators, **{word: 1 if name == "SD3" else 2}, **call)[0])
    assert len(images[0]) == 2 and relative(images[0].double(), images[1].double()) < 1e-5


SDE = {"algorithm_type": "sde-dpmsolver++"}
OF_DIFFUSION = {
    "DDPM": lambda: diffusers.DDPMScheduler(clip_sample=False, **V),
    "PNDM": lambda: diffusers.PNDMScheduler(**V),
    "2M SDE": lambda: DPM(**SDE, **V),
    "UniPC": lambda: diffusers.UniPCMultistepScheduler(**V),
    "ours": lambda: PlanScheduler.from_config(DPM(**V), "unipc", order=3),
}


@pytest.mark.parametrize("scheduler", OF_DIFFUSION)
def test_schedulers_of_diffusion(scheduler):
    check(transformers.pixart(), OF_DIFFUSION[scheduler](), steps=12 if scheduler == "PNDM" else 5)


@pytest.mark.parametrize("scheduler", [name for name in OF_DIFFUSION if name != "ours"])
def test_schedulers_of_dit(scheduler):
    """Not UniPC of ours, which goes on from its own state, where the pipeline gives steps copies of theirs."""
    check(tiny.dit(), OF_DIFFUSION[scheduler](), steps=12 if scheduler == "PNDM" else 5)


@pytest.mark.parametrize("make", [tiny.stable_diffusion_3, transformers.flux])
@pytest.mark.parametrize("solver, options", [("unipc", {}), ("heun", {}), ("euler-ancestral", {})])
def test_solvers_of_flow(make, solver, options):
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}
    check(make(), PlanScheduler.from_config(config, solver, **options))


@pytest.mark.parametrize("scheduler", [lambda: FLOW(shift=5.0), lambda: DPM.from_config(shifted().config, **SDE)])
def test_schedulers_of_video(scheduler):
    check(tiny.wan(), scheduler())


def test_the_one_step_of_a_consistency_model():
    """Of which PixArt-alpha's pipeline takes the data that was not noised again."""
    scheduler = diffusers.LCMScheduler(**V)
    check(transformers.pixart(), scheduler, steps=1)
    check(transformers.pixart(), scheduler, steps=3)
    check(transformers.pixart("Sigma", variance=False), DPM(**V), steps=1)


@pytest.mark.parametrize("name", ["SD3", "FLUX guided", "FLUX in a part", "Wan", "Wan from an image"])
class TestCallbacks:
    def _run(self, made, scheduler, call, on_step, inputs):
        seen = []

        def callback(pipe, i, t, tensors):
            assert float(getattr(pipe, "current_timestep", t)) == float(t)
            seen.append((i, float(t), {name: value.clone() for name, value in tensors.items()}))
            return on_step(pipe, i, tensors)

        more = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": inputs}
        return tiny.run(made, scheduler(), **call, **more), seen

    def _compare(self, name, on_step, inputs=("latents",), scheduler=None):
        make, own = CASES[name]
        scheduler = scheduler or own
        pipeline, call = make()
        want, theirs = self._run(pipeline, scheduler, call, on_step, list(inputs))
        got, ours = self._run(accelerate(pipeline), scheduler, call, on_step, list(inputs))
        assert relative(got.double(), want.double()) < 1e-5
        assert [seen[0] for seen in ours] == [seen[0] for seen in theirs]
        assert [seen[1] for seen in ours] == pytest.approx([seen[1] for seen in theirs], rel=1e-6)
        for (*_, tensors), (*_, wanted) in zip(ours, theirs, strict=True):
            assert list(tensors) == list(wanted)
            assert all(relative(tensors[key].double(), wanted[key].double()) < 1e-5 for key in wanted)
        return ours

    def test_are_called_alike(self, name):
        self._compare(name, lambda pipe, i, tensors: {}, ("latents", "prompt_embeds"))

    def test_change_latents(self, name):
        changed = lambda pipe, i, tensors: {"latents": tensors["latents"] * 0.9} if i == 1 else {}  # noqa: E731
        self._compare(name, changed, scheduler=lambda: FLOW(shift=5.0))

    def test_end_the_loop(self, name):
        def interrupt(pipe, i, tensors):
            pipe._interrupt = i == 2
            return {}

        assert len(self._compare(name, interrupt)) == 3


def test_pixart_s_callback(runs):
    pipeline, call = transformers.pixart()
    seen = [], []
    for made, each in zip((pipeline, accelerate(pipeline)), seen, strict=True):
        more = {"callback": lambda i, t, latents, each=each: each.append((i, int(t), latents.clone()))}
        tiny.run(made, DPM(**V), **call, **more, callback_steps=2)
    assert [one[:2] for one in seen[0]] == [one[:2] for one in seen[1]]
    assert all(relative(ours[2].double(), theirs[2].double()) < 1e-5 for theirs, ours in zip(*seen, strict=True))


@pytest.mark.parametrize("make", [tiny.stable_diffusion_3, transformers.flux, tiny.wan])
def test_a_network_of_half_precision_is_told_what_the_pipeline_tells_it(make):
    pipeline, call = make()
    network, dtype = pipeline.transformer, torch.bfloat16
    call = {name: value.to(dtype) if isinstance(value, torch.Tensor) else value for name, value in call.items()}
    told, images = ([], []), []
    network.to(dtype)
    try:
        for made, times in zip((pipeline, accelerate(pipeline)), told, strict=True):
            kept = lambda module, args, kwargs, times=times: times.append(float(kwargs["timestep"].flatten()[0]))  # noqa: E731
            hook = network.register_forward_pre_hook(kept, with_kwargs=True)
            scheduler = shifted() if make is tiny.wan else FLOW(shift=3.0)
            images.append(tiny.run(made, scheduler, **call).float())
            hook.remove()
    finally:
        network.float()
    assert told[1] == pytest.approx(told[0], rel=1e-6)
    assert relative(images[1], images[0]) < 0.05  # guidance of rounded outputs, in bfloat16 there and float32 here


REFUSED = [
    ("SD3", {"skip_guidance_layers": [0]}, "skip_guidance_layers must be None"),
    ("PixArt-alpha", {"num_inference_steps": 1}, "num_inference_steps must be 2 or more"),
]


@pytest.mark.parametrize("name, call, word", REFUSED)
def test_what_cannot_be_is_refused(name, call, word):
    """By name, before the network is called."""
    make, scheduler = CASES[name]
    pipeline, arguments = make()
    fast, calls = accelerate(pipeline), []
    fast.scheduler = scheduler()
    hook = pipeline.transformer.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(ValueError, match=word):
        fast(**{"num_inference_steps": 3, **arguments, **call})
    hook.remove()
    assert not calls


def test_a_scheduler_that_scales_is_refused_for_dit():
    """Its pipeline steps from what it scaled."""
    pipeline, call = tiny.dit()
    with pytest.raises(ValueError, match="scheduler must leave the network's input as it is in a DiTPipeline, got eul"):
        tiny.run(accelerate(pipeline), diffusers.EulerDiscreteScheduler(), **call)


def test_a_network_that_is_missing():
    pipeline, call = transformers.wan(two=True)
    parts = {**pipeline.components, "transformer_2": None}
    fast = accelerate(diffusers.WanPipeline(**parts, boundary_ratio=0.8))
    with pytest.raises(ValueError, match="transformer_2 must be a network where the loop calls it, got None"):
        tiny.run(fast, shifted(), **call)
