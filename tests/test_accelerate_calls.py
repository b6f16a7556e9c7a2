"""What is seen of an accelerated pipeline: callbacks, bars, its class, threads, refusals."""

import copy
import inspect
import pickle
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import pytest

diffusers = pytest.importorskip("diffusers", reason="the pipelines are diffusers'")
pytest.importorskip("transformers", reason="diffusers' pipelines with text import it")
import tiny_pipelines as tiny  # noqa: E402
import torch  # noqa: E402
from accelerate_case import counted, fresh, interrupted, refused  # noqa: E402
from golden_data import relative  # noqa: E402
from test_pipelines import latent  # noqa: E402

import pndm_fast as pf  # noqa: E402
from pndm_fast.integrations.diffusers import PlanScheduler, accelerate  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own, of its deprecations


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


@pytest.mark.parametrize("name, kind", [("Euler", ""), ("Heun", ""), ("PNDM", "Img2Img")])
def test_the_progress_bar(name, kind, bars):
    pipeline, call = fresh(kind)
    fast, pipeline.scheduler = accelerate(pipeline), latent(name)
    check_bar(bars, pipeline, fast, {**call, "num_inference_steps": 5})


def test_the_progress_bar_of_pixels(bars):
    pipeline = diffusers.DDPMPipeline(tiny.pixels(), diffusers.DDPMScheduler(prediction_type="sample"))
    check_bar(bars, pipeline, accelerate(pipeline), {"num_inference_steps": 4, "output_type": "np"})


def check_bar(bars, pipeline, fast, call):
    pipeline.set_progress_bar_config()
    pipeline(**call)
    fast(**call)
    theirs, ours = bars
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
