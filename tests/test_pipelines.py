"""`PlanScheduler` in diffusers' own pipelines, unmodified: the images that diffusers' scheduler makes there."""

import pytest

diffusers = pytest.importorskip("diffusers", reason="the pipelines are diffusers'")
pytest.importorskip("transformers", reason="diffusers' pipelines with text import it")
import tiny_pipelines as tiny  # noqa: E402
import tiny_transformers  # noqa: E402
import torch  # noqa: E402
from golden_data import relative  # noqa: E402

import pndm_fast as pf  # noqa: E402
from pndm_fast.integrations.diffusers import PlanScheduler  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own, of its deprecations

V = {"prediction_type": "v_prediction", "steps_offset": 1, **tiny.LATENT_BETAS}
SCHEDULERS = {
    "PNDM": ("PNDM", {"skip_prk_steps": True}),
    "DDIM": ("DDIM", {"clip_sample": False}),
    "DPM++ 2M Karras": ("DPMSolverMultistep", {"use_karras_sigmas": True}),
    "2M SDE": ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++"}),
    "UniPC": ("UniPCMultistep", {}),
    "Euler": ("EulerDiscrete", {}),
    "Euler a": ("EulerAncestralDiscrete", {}),
    "Heun": ("HeunDiscrete", {}),
    "LCM": ("LCM", {}),
    "DDPM": ("DDPM", {"clip_sample": False}),
    "DEIS": ("DEISMultistep", {}),
}
OF_ONE_CALL = [name for name in SCHEDULERS if name not in ("PNDM", "UniPC", "Heun")]


def some(names, *kept):
    """The rest of them is stress."""
    return [name if name in kept else pytest.param(name, marks=pytest.mark.stress) for name in names]


def latent(name):
    kind, options = SCHEDULERS[name]
    return getattr(diffusers, f"{kind}Scheduler")(**{**V, **options})


def check(case, scheduler, **call):
    pipeline, arguments = case
    want = tiny.run(pipeline, scheduler, **arguments, **call)
    got = tiny.run(pipeline, PlanScheduler.from_config(scheduler), **arguments, **call)
    assert got.shape == want.shape and got.dtype == want.dtype
    assert relative(got.double(), want.double()) < 1e-5


@pytest.mark.parametrize("name", SCHEDULERS)
def test_text_to_image(name):
    check(tiny.stable_diffusion(), latent(name))


@pytest.mark.parametrize("name", some(SCHEDULERS, "PNDM", "UniPC", "Heun", "Euler"))
def test_image_to_image(name):
    check(tiny.stable_diffusion("Img2Img"), latent(name))


@pytest.mark.parametrize("name", some(OF_ONE_CALL, "DDIM", "2M SDE", "Euler a"))
def test_inpainting(name):
    check(tiny.stable_diffusion("Inpaint"), latent(name))


@pytest.mark.parametrize("name", ["PNDM", "UniPC", "Heun"])
def test_inpainting_of_a_solver_with_a_state_of_its_own(name):
    pipeline, call = tiny.stable_diffusion("Inpaint")
    with pytest.raises(ValueError, match="sample must be what step returned before call 1 of"):
        tiny.run(pipeline, PlanScheduler.from_config(latent(name)), **call)


@pytest.mark.parametrize(
    "kind, options",
    [("DDPM", {"clip_sample": True}), ("DDPM", {"clip_sample": False}), ("DDIM", {"clip_sample": False})],
)
def test_pixels(kind, options):
    scheduler = getattr(diffusers, f"{kind}Scheduler")(**{"prediction_type": "sample", **options})
    check((diffusers.DDPMPipeline(tiny.pixels(), scheduler), {"batch_size": 2, "output_type": "np"}), scheduler)


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_ddim_s_eta(eta):
    scheduler = diffusers.DDIMScheduler(clip_sample=False, prediction_type="sample")
    check((diffusers.DDIMPipeline(tiny.pixels(), scheduler), {"output_type": "np"}), scheduler, eta=eta)


def test_latent_consistency_models():
    """Which take two things of each step."""
    check(tiny.consistency(), latent("LCM"))
    check(tiny.consistency(), latent("LCM"), original_inference_steps=20)


@pytest.mark.parametrize("name", ["Euler", "DPM++ 2M Karras"])
def test_stable_diffusion_xl(name):
    check(tiny.stable_diffusion_xl(), latent(name))
    check(tiny.stable_diffusion_xl(), latent(name), denoising_end=0.6)


@pytest.mark.parametrize("kind, options", [("DDIM", {"clip_sample": False}), ("DPMSolverMultistep", {})])
def test_dit(kind, options):
    check(tiny.dit(), getattr(diffusers, f"{kind}Scheduler")(**options))


@pytest.mark.parametrize("options", [{"shift": 3.0}, {"use_dynamic_shifting": True}])
def test_stable_diffusion_3(options):
    check(tiny.stable_diffusion_3(), diffusers.FlowMatchEulerDiscreteScheduler(**options))


@pytest.mark.parametrize("options", [{"use_dynamic_shifting": True}, {"shift_terminal": 0.02}])
def test_flux(options):
    """Its pipeline gives sigmas and mu, whatever the scheduler."""
    check(tiny.flux(), diffusers.FlowMatchEulerDiscreteScheduler(**options))


def test_wan():
    pipeline, _ = tiny.wan()
    shifted = diffusers.UniPCMultistepScheduler.from_config(pipeline.scheduler.config, flow_shift=5.0)
    check(tiny.wan(), shifted)
    check(tiny_transformers.wan_from_video(), shifted)  # noised to a time that is rounded


@pytest.mark.parametrize("solver", ["unipc", "dpmpp-2m", "heun", "euler-ancestral"])
def test_another_solver_for_flow(solver):
    """The sigmas that FLUX gives, shifted by its mu, are the solver's grid: what `make_plan` makes of them."""
    pipeline, call = tiny.flux()
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}
    ours = PlanScheduler.from_config(config, solver)
    image = tiny.run(pipeline, ours, **call)
    assert torch.isfinite(image).all()
    mu = 0.5 + (16 - 256) * (1.15 - 0.5) / (4096 - 256)
    schedule = pf.Schedule.flow(torch.tensor(mu).exp().item(), 1000)
    plan = pf.make_plan(solver, schedule, steps=5, spacing="trailing", prediction="flow")
    assert ours.timesteps.tolist() == pytest.approx(plan.times, rel=1e-6)


def test_a_pipeline_is_saved_with_it(tmp_path):
    scheduler = PlanScheduler.from_config(
        {"_class_name": "DDIMScheduler", "prediction_type": "sample"}, "unipc", order=3
    )
    pipeline = diffusers.DDPMPipeline(tiny.pixels(), scheduler)
    pipeline.save_pretrained(tmp_path)
    loaded = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    assert type(loaded.scheduler) is PlanScheduler
    assert dict(loaded.scheduler.config)["_plan"] == dict(scheduler.config)["_plan"]
    call = {"output_type": "np"}
    assert relative(tiny.run(loaded, loaded.scheduler, **call), tiny.run(pipeline, scheduler, **call)) < 1e-5
