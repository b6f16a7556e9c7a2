"""Words of other libraries, and what this one says in their place: the one table that error messages look in.

Beside it whose each of our own arguments is, and what refuses an unknown one.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

Taker = TypeVar("Taker", bound=Callable[..., Any])

# whose an argument is, and the form in which it is given; `tests/test_signatures.py` compares them with the signatures
_FORMS = {
    "make_plan": "plan = pf.make_plan(..., {}=...)",
    "Sampler": "pf.Sampler(model, plan, {}=...)",
    "Request": "sampler({}=...), or pf.Request({}=...)",
}
OWNERS: dict[str, str] = {
    **dict.fromkeys(
        ("solver", "schedule", "steps", "nfe", "times", "sigmas", "spacing", "final", "t_min", "t_start", "strength",
         "clip", "integer_times", "prediction", "compat"),
        "make_plan",
    ),
    **dict.fromkeys(
        ("shape", "device", "dtype", "time_dtype", "backend", "graph", "concurrency", "memory_format", "fixed_batch",
         "stateful"), "Sampler"
    ),
    **dict.fromkeys(
        ("seeds", "start", "noise_sampler", "cond", "uncond", "guidance", "on_step", "cancel", "on_nan", "progress"),
        "Request",
    ),
}  # fmt: skip

_CALL = "an argument of pf.sample and of a sampler's call"
_COND = f"that goes into cond={{...}}, {_CALL}"
_SEEDS = "seeds= gives each sample its own reproducible noise"
_SHAPE = "shape=(batch, *sample shape) is an argument of pf.sample and Sampler"
_BETAS = "the schedule says it: schedule=pf.Schedule.linear(T, beta_start, beta_end), scaled_linear, cosine, from_betas"
_COMPAT = "compat='diffusers' has it as an option"

HINTS: dict[str, str] = {
    # how many steps
    **dict.fromkeys(
        ("num_inference_steps", "num_steps", "n_steps", "inference_steps", "sampling_steps", "sample_steps",
         "num_sampling_steps", "ddim_steps", "ddim_num_steps", "sample_timesteps", "steps_num"),
        "say steps=, or nfe= for network calls",
    ),
    "timestep_respacing": "say steps= and spacing=",
    # the grid
    **dict.fromkeys(("timesteps", "custom_timesteps", "t_steps"), "say times=, with the end: n + 1 times for n steps"),
    **dict.fromkeys(("sigma", "noise_levels"), "say sigmas=, with the end: n + 1 noise levels for n steps"),
    **dict.fromkeys(
        ("timestep_spacing", "timestep_type", "skip_type", "discretization", "ddim_discretize", "ddim_discr_method",
         "time_spacing", "grid", "noise_schedule", "sigma_schedule"),
        "say spacing=",
    ),
    **{
        f"use_{kind}_sigmas": f"say spacing={kind!r}, or with compat= sigma_spacing={kind!r}"
        for kind in ("karras", "exponential", "beta")
    },
    "use_lu_lambdas": "say spacing='logsnr', or with compat= sigma_spacing='lu'",
    "use_flow_sigmas": "the schedule says it: schedule=pf.Schedule.flow(shift, T=1000)",
    "shift_terminal": "say t_min=, the time of the last call, on pf.Schedule.flow",
    **dict.fromkeys(("t_end", "t_eps", "sampling_eps", "t_0"), "say t_min=, with final='min' to end there"),
    **dict.fromkeys(("denoise_to_zero", "final_sigmas_type", "denoise_final"), "say final='zero' or final='min'"),
    **dict.fromkeys(("t_T", "start_at_step", "init_timestep"), "say t_start= or strength="),
    **dict.fromkeys(("denoising_strength", "skip_timesteps"), "say strength="),
    "denoise": "say strength=; denoise= is an option in phase space",
    **dict.fromkeys(("steps_offset", "set_alpha_to_one", "sigma_spacing"), _COMPAT),
    # the solver
    **dict.fromkeys(
        ("scheduler", "sampler", "sampler_name", "sampling_method", "algorithm", "algorithm_type", "method"),
        "say solver=, as in solver='dpmpp-2m': SOLVERS has the names",
    ),
    **dict.fromkeys(("solver_order", "predictor_order", "max_order"), "say order=, or name the solver of that order"),
    **dict.fromkeys(("solver_p", "use_corrector", "disable_corrector"), "say corrector=, of unipc"),
    **dict.fromkeys(("predict_x0", "predict_epsilon", "predict_noise"), "say predict=, of unipc, or prediction="),
    "skip_prk_steps": "solver='plms' skips them, solver='f-pndm' does not",
    "variance_type": "say variance=, of ddpm",
    **dict.fromkeys(("lower_order_second", "lower_order_end"), "say lower_order_final="),
    "s_churn": "say churn=, of edm",
    "s_tmin": "say churn_min=, of edm",
    "s_tmax": "say churn_max=, of edm",
    "s_noise": "say churn_noise=, of edm",
    **dict.fromkeys(("ddim_eta", "eta_ddim", "eta_noise"), "say eta="),
    **dict.fromkeys(
        ("clip_denoised", "clip_sample", "clip_sample_range", "thresholding", "sample_max_value", "clamp"),
        "say clip=, the limit of estimates of x_0",
    ),
    # the schedule and the prediction
    **dict.fromkeys(
        ("beta_schedule", "beta_start", "beta_end", "betas", "trained_betas", "num_train_timesteps", "num_timesteps",
         "linear_start", "linear_end"),
        _BETAS,
    ),
    **dict.fromkeys(
        ("alphas_cumprod", "alphas_bar", "alpha_bar"), "the schedule says it: pf.Schedule.from_alphas_cumprod(...)"
    ),
    **dict.fromkeys(("beta_min", "beta_max"), "the schedule says it: schedule=pf.Schedule.vp(beta_min, beta_max)"),
    **dict.fromkeys(
        ("sigma_min", "sigma_max"), "the schedule says it: schedule=pf.Schedule.edm(sigma_min, sigma_max)"
    ),
    **dict.fromkeys(
        ("rho", "karras_rho"),
        "spacing='karras' has rho = 7; for another times=pndm_fast.plan.named_grid('karras', schedule, steps, rho=)",
    ),
    **dict.fromkeys(
        ("shift", "flow_shift", "time_shift", "mu", "use_dynamic_shifting"),
        "the schedule says it: schedule=pf.Schedule.flow(shift=), shift = exp(mu) with mu as of pf.flow_mu",
    ),
    **dict.fromkeys(
        ("rescale_betas_zero_snr", "zero_snr", "zsnr"), "the schedule says it: schedule=....zero_terminal_snr()"
    ),
    **dict.fromkeys(
        ("prediction_type", "parameterization", "model_type", "objective", "pred_type"),
        "say prediction=: eps, v, x0, flow or edm",
    ),
    # guidance and conditioning
    **dict.fromkeys(
        ("guidance_scale", "cfg", "cfg_scale", "cond_scale", "unconditional_guidance_scale", "true_cfg_scale"),
        f"say guidance=, {_CALL}",
    ),
    "guidance_rescale": "say guidance=pf.Guidance(scale, rescale=), in the call",
    **dict.fromkeys(
        ("negative_prompt", "negative_prompt_embeds", "unconditional_conditioning", "uc", "neg_cond",
         "negative_prompt_embeds_mask", "unconditional_condition"),
        f"what the network gets without the condition goes into uncond={{...}}, {_CALL}",
    ),
    **dict.fromkeys(
        ("prompt_embeds", "encoder_hidden_states", "encoder_attention_mask", "class_labels", "labels", "context",
         "conditioning", "condition", "y", "model_kwargs", "extra_args", "cross_attention_kwargs",
         "added_cond_kwargs", "pooled_prompt_embeds", "pooled_projections", "kwargs"),
        _COND,
    ),
    "prompt": "networks take tensors: encode it, and give the embeddings in cond={...} of the call",
    # noise, starts and shapes
    **dict.fromkeys(("seed", "manual_seed", "generator", "random_seed", "rng"), _SEEDS),
    **dict.fromkeys(
        ("latents", "x_T", "init_noise", "noise"),
        "say start=pf.Noise(...) for standard normals, pf.State(...) for a state as it is, in the call",
    ),
    **dict.fromkeys(("image", "init_image", "x0", "init_latents"), "say start=pf.Image(...) in the call"),
    **dict.fromkeys(
        ("mask", "mask_image", "inpaint_mask", "denoise_mask"), "say start=pf.Inpaint(x0, mask) in the call"
    ),
    **dict.fromkeys(
        ("batch_size", "num_images_per_prompt", "n_samples", "num_samples", "height", "width", "image_size", "size"),
        _SHAPE,
    ),
    # watching
    **dict.fromkeys(
        ("callback", "callback_on_step_end", "callback_steps", "img_callback", "on_step_end"),
        "say on_step=, an argument of a sampler's call",
    ),
    **dict.fromkeys(("verbose", "disable", "disable_progress_bar", "disable_tqdm", "tqdm"), f"say progress=, {_CALL}"),
    **dict.fromkeys(("unet", "net", "network", "denoise_fn", "model_fn"), "the network is the first argument, model"),
    "torch_dtype": "say dtype=, an argument of Sampler",
    **dict.fromkeys(("return_dict", "output_type"), "a call returns the samples, sampler.run(...) a Result"),
    "do_classifier_free_guidance": "guidance= and uncond= ask for it, in the call",
    **dict.fromkeys(("guidance_interval", "cfg_interval"), "say guidance=pf.Guidance(scale, interval=), in the call"),
    **dict.fromkeys(
        ("dynamic_thresholding_ratio", "dynamic_threshold", "correcting_x0_fn"),
        "pf.Thresholded(network, plan) does it by quantiles, clip= to a limit",
    ),
}  # fmt: skip


def hint(word: str) -> str:
    """The end of an error message about that word, or nothing; capitals, hyphens and underscores are one."""
    if _OTHERS.get(word):
        return f"; it is {_OTHERS[word]}"
    said = _SPELT.get(_plain(word))
    return f"; {said}" if said else ""


def _plain(word: str) -> str:
    return str(word).lower().replace("-", "_").strip("_")


_SPELT = {_plain(word): said for word, said in HINTS.items()}


def _home(name: str) -> str:
    """Where one of our own arguments is given."""
    owner = OWNERS[name]
    return f"an argument of {owner}: {_FORMS[owner].format(name, name)}"


OPTIONS: set[str] = set()  # of solvers, which put theirs here

_OTHERS = {name: _home(name) for name, owner in OWNERS.items() if owner != "make_plan"}


def refuse_unknown(
    what: str,
    known: Iterable[str],
    given: Iterable[str],
    own: Mapping[str, str] | None = None,
    *,
    all_known: bool = True,
) -> None:
    """Refuse the first argument that is not known, in words.

    Args:
        what: who was given them.
        own: what other libraries' words are called here alone.
        all_known: whether those known are all that there are.

    Raises:
        TypeError: whose argument it is, what it is called here, or the nearest one.
    """
    names = tuple(known)
    for name in given:
        if name in names:
            continue
        if own and name in own:
            raise TypeError(f"{name!r} is no argument of {what}; say {own[name]}=") from None
        if name in OWNERS:
            raise TypeError(f"{name} is {_home(name)}") from None
        if name in OPTIONS:
            raise TypeError(f"{name} is an option of solvers: {_FORMS['make_plan'].format(name)}") from None
        if hint(name):
            raise TypeError(f"{name!r} is no argument of {what}{hint(name)}") from None
        if all_known:
            if not names:
                raise TypeError(f"{name!r} is no argument of {what}, which has none") from None
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
            mean = f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"an argument of {what} must be one of {', '.join(names)}, got {name!r}{mean}") from None


def in_words(what: str, **own: str) -> Callable[[Taker], Taker]:
    """A function, or a class, that refuses unknown keyword arguments in words.

    Args:
        own: what other libraries' words are called here alone.
    """

    def decorate(taker: Taker) -> Taker:
        if isinstance(taker, type):
            taker.__init__ = decorate(taker.__init__)  # type: ignore[misc]
            return taker

        @functools.wraps(taker)
        def called(*args: Any, **given: Any) -> Any:
            try:
                return taker(*args, **given)
            except TypeError:
                names = list(inspect.signature(taker).parameters)
                refuse_unknown(what, [name for name in names if name not in ("self", "cls")], given, own)
                raise

        return called  # type: ignore[return-value]

    return decorate
