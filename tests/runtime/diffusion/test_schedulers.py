"""Schedulers: every intermediate latent is that of diffusers, for the options of real models."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pixelrt.errors import InputError, UsageError
from pixelrt.runtime.diffusion.schedulers import NAMES, Run, Scheduler, make_scheduler
from pixelrt.runtime.diffusion.schedulers.registry import CHOICES, CLASSES

# diffusers reads torch tensors as arrays in a way that numpy 2 warns of
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

Array = NDArray[np.float32]
Config = Mapping[str, Any]

TOLERANCE = 1e-5
"""Of the largest latent, or of 1 where all are smaller: what float32 leaves over 50 steps."""

SHAPE = (2, 4, 6, 5)
RUNS = ((1, 1.0), (2, 1.0), (2, 0.5), (4, 1.0), (4, 0.75), (20, 1.0), (20, 0.3), (50, 0.5))

_SD = {
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
_SDXL = {
    **_SD,
    "interpolation_type": "linear",
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "use_karras_sigmas": False,
}
SD_1 = {**_SD, "_class_name": "PNDMScheduler"}
SD_2_V = {**_SD, "_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}
SDXL = {**_SDXL, "_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"}
SDXL_TURBO = {
    **_SDXL,
    "_class_name": "EulerAncestralDiscreteScheduler",
    "timestep_spacing": "trailing",
}
LCM = {
    "_class_name": "LCMScheduler",
    "_diffusers_version": "0.22.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "clip_sample_range": 1.0,
    "dynamic_thresholding_ratio": 0.995,
    "num_train_timesteps": 1000,
    "original_inference_steps": 50,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
    "sample_max_value": 1.0,
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "thresholding": False,
    "timestep_scaling": 10.0,
    "timestep_spacing": "leading",
    "trained_betas": None,
}
X4_UPSCALER = {
    **_SD,
    "_class_name": "DDIMScheduler",
    "beta_end": 0.02,
    "beta_start": 0.0001,
    "prediction_type": "v_prediction",
}
X4_LOW_RES = {
    "_class_name": "DDPMScheduler",
    "beta_end": 0.02,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.0001,
    "clip_sample": True,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "trained_betas": None,
    "variance_type": "fixed_small",
}
X2_LATENT_UPSCALER = {
    **_SD,
    "_class_name": "EulerDiscreteScheduler",
    "interpolation_type": "linear",
    "prediction_type": "original_sample",
}
KANDINSKY_DECODER = {
    "_class_name": "DDPMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "linear",
    "beta_start": 0.00085,
    "clip_sample": True,
    "clip_sample_range": 2.0,
    "dynamic_thresholding_ratio": 0.99,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sample_max_value": 2.0,
    "thresholding": True,
    "trained_betas": None,
    "variance_type": "learned_range",
}
KANDINSKY_PRIOR = {
    "_class_name": "UnCLIPScheduler",
    "clip_sample": True,
    "clip_sample_range": 5.0,
    "num_train_timesteps": 1000,
    "prediction_type": "sample",
    "variance_type": "fixed_small_log",
}


@dataclass(frozen=True)
class Case:
    """A scheduler of a model: its configuration, or another one by name with more options.

    ``alone``: each step begins with diffusers' latents, so that differences do not add up.
    """

    config: Config
    name: str | None = None
    eta: float = 0.0
    tolerance: float = TOLERANCE
    alone: bool = False

    def ours(self) -> Scheduler[Any]:
        return make_scheduler(self.config, self.name)

    def theirs(self) -> Any:
        config = dict(self.config)
        class_name = config["_class_name"]
        for choice in CHOICES:
            if choice.name == self.name:
                class_name = choice.kind.name
                config |= choice.options
        return getattr(diffusers, class_name).from_config(config)


MODELS = {
    "sd1": SD_1,
    "sd2-v": SD_2_V,
    "sdxl": SDXL,
    "turbo": SDXL_TURBO,
    "lcm": LCM,
    "x4": X4_UPSCALER,
    "x2": X2_LATENT_UPSCALER,
    "kandinsky-decoder": KANDINSKY_DECODER,
    "kandinsky-prior": KANDINSKY_PRIOR,
}
_EPSILON_MODELS = ("sd1", "sdxl")
_ANY_MODEL = ("sd1", "sd2-v", "sdxl", "turbo")

PUBLISHED = {model: Case(config) for model, config in MODELS.items()} | {
    f"{model}-{name}": Case(MODELS[model], name)
    for model in _ANY_MODEL
    for name in NAMES
    if name != "unclip"
}
# The stand-in for the network is steep where latents are 60: over fifty steps it enlarges what
# processors round in their own ways.
PUBLISHED["lcm"] = Case(LCM, alone=True)


def _with(name: str, base: Config = SD_1, eta: float = 0.0, **options: Any) -> Case:
    return Case({**base, **options}, name, eta)


_ZERO_SNR = {
    "rescale_betas_zero_snr": True,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
}
_THRESHOLDS = {"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.95}
_COSINE = {"beta_schedule": "squaredcos_cap_v2"}
_SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
_SOLVERS = ("dpm++", "dpm++-sde", "unipc")

OPTIONS = {
    **{
        f"{name}-{spacing}": _with(name, timestep_spacing=spacing)
        for name in NAMES
        if name != "unclip"
        for spacing in ("leading", "trailing", "linspace")
    },
    **{
        f"{name}-{schedule}": _with(name, beta_schedule=schedule, steps_offset=0)
        for name in ("ddim", "pndm", "euler", "euler-a", "dpm++", "unipc", "lcm", "ddpm")
        for schedule in ("linear", "squaredcos_cap_v2")
    },
    **{
        f"{name}-{kind}": _with(name, prediction_type=kind)
        for name in ("ddim", "euler", "dpm++", "dpm++-sde", "unipc", "lcm", "ddpm")
        for kind in ("sample", "v_prediction")
    },
    **{
        f"{name}-zero-snr": _with(name, **_ZERO_SNR)
        for name in ("ddim", "ddpm", "dpm++", "dpm++-sde", "unipc", "lcm")
    },
    # from sigma 4096 down to 3 in one step: float32 holds the former to 5e-4
    **{
        f"{name}-zero-snr": Case({**SD_1, **_ZERO_SNR}, name, tolerance=3e-4)
        for name in ("euler", "euler-a")
    },
    **{
        f"{name}-threshold": _with(name, **_THRESHOLDS)
        for name in ("ddim", "ddpm", "dpm++", "unipc", "lcm")
    },
    **{
        f"{name}-clip": _with(name, clip_sample=True, clip_sample_range=0.8)
        for name in ("ddim", "ddpm", "lcm")
    },
    **{
        f"{name}-{sigmas}-{final}": _with(name, **{sigmas: True, "final_sigmas_type": final})
        for name in ("euler", *_SOLVERS)
        for sigmas in _SIGMAS
        for final in ("zero", "sigma_min")
    },
    **{
        f"{name}-{sigmas}-cosine": _with(name, **{sigmas: True}, **_COSINE)
        for name in ("euler", "dpm++", "unipc")
        for sigmas in _SIGMAS
    },
    **{
        f"{name}-{order}-{kind}-{lower}-{final}": _with(
            name,
            solver_order=order,
            solver_type=kind,
            lower_order_final=lower,
            final_sigmas_type=final,
        )
        for name in ("dpm++", "dpm++-sde")
        for order in (1, 2, 3)
        for kind in ("midpoint", "heun")
        for lower in (True, False)
        for final in ("zero", "sigma_min")
    },
    **{
        f"unipc-{order}-{kind}-{predict}-{lower}": _with(
            "unipc",
            solver_order=order,
            solver_type=kind,
            predict_x0=predict,
            lower_order_final=lower,
            final_sigmas_type="sigma_min",
        )
        for order in (1, 2, 3)
        for kind in ("bh1", "bh2")
        for predict in (True, False)
        for lower in (True, False)
    },
    "unipc-3-zero": _with("unipc", solver_order=3),
    "unipc-disable": _with("unipc", solver_order=3, disable_corrector=[0, 1, 5]),
    "unipc-noise-v": _with(
        "unipc", predict_x0=False, final_sigmas_type="sigma_min", prediction_type="v_prediction"
    ),
    "unipc-noise-sample": _with(
        "unipc", predict_x0=False, final_sigmas_type="sigma_min", prediction_type="sample"
    ),
    "dpm++-euler-at-final": _with(
        "dpm++", euler_at_final=True, lower_order_final=False, final_sigmas_type="sigma_min"
    ),
    "dpm++-lu": _with("dpm++", use_lu_lambdas=True),
    "dpm++-lambda": _with("dpm++", lambda_min_clipped=-5.1, **_COSINE),
    "dpm++-lambda-trailing": _with(
        "dpm++", lambda_min_clipped=-5.1, timestep_spacing="trailing", **_COSINE
    ),
    "dpm++-deis": _with("dpm++", algorithm_type="deis", solver_type="logrho"),
    "euler-log-linear": _with("euler", interpolation_type="log_linear"),
    "euler-log-linear-karras": _with(
        "euler", interpolation_type="log_linear", use_karras_sigmas=True
    ),
    "euler-continuous": _with(
        "euler",
        timestep_type="continuous",
        prediction_type="v_prediction",
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
    ),
    "ddim-eta-1": _with("ddim", eta=1.0),
    "ddim-eta-half": _with("ddim", eta=0.5, prediction_type="v_prediction"),
    "ddim-one": _with("ddim", set_alpha_to_one=True),
    "ddim-trained-betas": _with("ddim", trained_betas=np.linspace(1e-3, 0.02, 1000).tolist()),
    "ddim-of-100": _with("ddim", num_train_timesteps=100, steps_offset=0),
    "pndm-one": _with("pndm", set_alpha_to_one=True),
    "pndm-runge-kutta": _with("pndm", skip_prk_steps=False),
    "pndm-runge-kutta-v": _with("pndm", SD_2_V, skip_prk_steps=False),
    "lcm-25": _with("lcm", original_inference_steps=100, timestep_scaling=5.0),
    **{
        f"ddpm-{kind}": _with("ddpm", variance_type=kind)
        for kind in ("fixed_small", "fixed_small_log", "fixed_large", "learned", "learned_range")
    },
    "unclip-epsilon-learned": Case(
        {**KANDINSKY_PRIOR, "prediction_type": "epsilon", "variance_type": "learned_range"}
    ),
}


def _network(latents: Array, timestep: float, channels: int) -> Array:
    """Stands for the network: smooth, not linear, without amplifying differences."""
    wave = np.sin(latents + np.float32(float(timestep) / 300))
    output = np.float32(0.5) * wave + np.float32(0.25) * np.tanh(latents)
    if channels == latents.shape[1]:
        return output
    return np.concatenate([output, np.float32(0.5) + np.float32(0.4) * np.cos(latents)], axis=1)


def _noise(seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal(SHAPE, dtype=np.float32)


@contextmanager
def _injected(scheduler: Any, noises: Mapping[str, Array]) -> Iterator[None]:
    """diffusers' scheduler draws ``noises["now"]`` in place of its own noise."""
    module = sys.modules[type(scheduler).__module__]
    if not hasattr(module, "randn_tensor"):
        yield
        return
    original = module.randn_tensor
    module.randn_tensor = lambda *args, **kwargs: torch.from_numpy(noises["now"].copy())
    try:
        yield
    finally:
        module.randn_tensor = original


def _variance_channels(case: Case) -> int:
    learned = str(case.config.get("variance_type")).startswith("learned")
    ancestral = case.ours().name in ("DDPMScheduler", "UnCLIPScheduler")
    return SHAPE[1] * (2 if learned and ancestral else 1)


def _their_window(scheduler: Any, steps: int, strength: float) -> Any:
    """``get_timesteps`` of diffusers' image-to-image pipelines."""
    start = max(steps - min(int(steps * strength), steps), 0)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    return scheduler.timesteps[start:]


def _assert_close(ours: Array, theirs: Array, what: str, tolerance: float = TOLERANCE) -> None:
    assert ours.dtype == np.float32
    limit = tolerance * max(1.0, float(np.abs(theirs).max()))
    error = float(np.abs(ours - theirs).max())
    assert error <= limit, f"{what}: {error:.2e} above {limit:.2e}"


def _compare(case: Case, run: Run, theirs: Any, timesteps: Any, channels: int) -> None:
    """Both from the same noised image, each along its own latents, unless steps are alone."""
    np.testing.assert_allclose(run.timesteps, timesteps.numpy(), rtol=1e-6, atol=1e-4)
    image = np.tanh(_noise(1))
    ours = run.add_noise(image, _noise(2))
    latents = theirs.add_noise(
        torch.from_numpy(image), torch.from_numpy(_noise(2)), timesteps[:1].repeat(len(image))
    )
    _assert_close(ours, latents.numpy(), "noised")
    noises: dict[str, Array] = {}
    options: dict[str, Any] = {"eta": case.eta} if case.eta else {}
    with _injected(theirs, noises):
        for i, timestep in enumerate(timesteps):
            noises["now"] = _noise(100 + i)
            scaled = theirs.scale_model_input(latents, timestep)
            ours_scaled = run.scale_input(ours, i)
            _assert_close(ours_scaled, scaled.numpy(), f"input {i}", case.tolerance)
            output = torch.from_numpy(_network(scaled.numpy(), float(timestep), channels))
            if theirs.__class__.__name__ == "UnCLIPScheduler" and i + 1 < len(timesteps):
                options["prev_timestep"] = timesteps[i + 1]
            else:
                options.pop("prev_timestep", None)
            result = theirs.step(output, timestep, latents, **options)
            latents = result.prev_sample
            ours_output = _network(ours_scaled, float(run.timesteps[i]), channels)
            step = run.step(ours_output, i, ours, lambda _: noises["now"])
            _assert_close(step.latents, latents.numpy(), f"step {i}", case.tolerance)
            predicted = getattr(result, "denoised", getattr(result, "pred_original_sample", None))
            if predicted is not None:
                _assert_close(step.predicted, predicted.numpy(), f"prediction {i}", case.tolerance)
            ours = latents.numpy().copy() if case.alone else step.latents
            # as inpainting keeps what is outside the mask
            if i in (0, len(timesteps) // 2) and i + 1 < len(timesteps):
                again = theirs.add_noise(
                    torch.from_numpy(image), torch.from_numpy(_noise(2)), timesteps[i + 1 : i + 2]
                )
                _assert_close(run.add_noise(image, _noise(2), i + 1), again.numpy(), f"kept {i}")


def _planned(case: Case, steps: int, strength: float) -> tuple[Run, Any, Any] | None:
    """Our run, their scheduler, their timesteps; ``None`` where both refuse."""
    theirs = case.theirs()
    if int(steps * strength) < 1:
        return None
    least = 4 if getattr(theirs.config, "skip_prk_steps", True) is False else 1
    if case.ours().name == "UnCLIPScheduler":
        least = 2
    if steps < (least if case.ours().name in ("PNDMScheduler", "UnCLIPScheduler") else 1):
        with pytest.raises(UsageError):
            case.ours().plan(steps, strength)
        return None
    theirs.set_timesteps(steps)
    timesteps = _their_window(theirs, steps, strength)
    run = case.ours().plan(steps, strength, eta=case.eta)
    assert run.initial_noise_scale == pytest.approx(float(theirs.init_noise_sigma), rel=1e-6)
    return run, theirs, timesteps


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_step_by_step(name: str) -> None:
    case = PUBLISHED[name]
    for steps, strength in (*RUNS, (50, 1.0)) if case.name is None else RUNS:
        planned = _planned(case, steps, strength)
        if planned:
            _compare(case, *planned, _variance_channels(case))


@pytest.mark.parametrize("name", OPTIONS)
def test_options_step_by_step(name: str) -> None:
    case = OPTIONS[name]
    for steps, strength in ((3, 1.0), (8, 0.6), (16, 1.0), (30, 0.3)):
        planned = _planned(case, steps, strength)
        if planned:
            _compare(case, *planned, _variance_channels(case))


def test_every_class_is_compared() -> None:
    cases = [*PUBLISHED.values(), *OPTIONS.values()]
    assert {case.ours().name for case in cases} == {kind.name for kind, _ in CLASSES}
    assert {case.name for case in cases} >= set(NAMES) - {"unclip"}


@pytest.mark.parametrize("strength", [0.1, 0.29, 0.5, 0.75, 0.999, 1.0])
@pytest.mark.parametrize("steps", [10, 21, 50])
@pytest.mark.parametrize("name", ["pndm", "ddim", "euler", "dpm++-karras", "unipc"])
def test_strength_takes_the_timesteps_of_image_to_image(
    name: str, steps: int, strength: float
) -> None:
    case = Case(SD_1, name)
    theirs = case.theirs()
    theirs.set_timesteps(steps)
    pipeline: Any = SimpleNamespace(scheduler=theirs)
    timesteps, _ = diffusers.StableDiffusionImg2ImgPipeline.get_timesteps(
        pipeline, steps, strength, "cpu"
    )
    run = case.ours().plan(steps, strength)
    np.testing.assert_allclose(run.timesteps, timesteps.numpy(), rtol=1e-6)
    if run.sigmas is not None:
        sigmas = theirs.sigmas[theirs.begin_index :].numpy()
        np.testing.assert_allclose(run.sigmas, sigmas, rtol=1e-6)


@pytest.mark.parametrize("share", [0.2, 0.35, 0.8])
@pytest.mark.parametrize("steps", [5, 25, 40])
@pytest.mark.parametrize("name", ["euler", "euler-karras", "dpm++", "unipc", "ddim", "pndm"])
def test_hand_over_from_base_to_refiner(name: str, steps: int, share: float) -> None:
    """The refiner goes on where the base stops; both take diffusers' timesteps and latents."""
    case = Case(SDXL, name)
    theirs = case.theirs()
    theirs.set_timesteps(steps)
    cutoff = round(1000 - share * 1000)
    base = theirs.timesteps[: sum(t >= cutoff for t in theirs.timesteps)]
    _compare(case, case.ours().plan(steps, denoising_end=share), theirs, base, SHAPE[1])

    theirs = case.theirs()
    theirs.set_timesteps(steps)
    pipeline: Any = SimpleNamespace(scheduler=theirs)
    refiner, _ = diffusers.StableDiffusionXLImg2ImgPipeline.get_timesteps(
        pipeline, steps, 0.3, "cpu", denoising_start=share
    )
    assert len(base) + len(refiner) == len(theirs.timesteps)
    run = case.ours().plan(steps, 0.3, denoising_start=share)
    _compare(case, run, theirs, refiner, SHAPE[1])


def test_a_part_between_two_hand_overs() -> None:
    scheduler = make_scheduler(SDXL)
    whole = scheduler.plan(40).timesteps
    part = scheduler.plan(40, denoising_start=0.25, denoising_end=0.75).timesteps
    np.testing.assert_array_equal(part, whole[(whole < 750) & (whole >= 250)])


@pytest.mark.parametrize("strength", [1.0, 0.6, 0.31])
@pytest.mark.parametrize("steps", [1, 4, 8])
def test_consistency_model_within_strength(steps: int, strength: float) -> None:
    case = Case(LCM)
    theirs = case.theirs()
    theirs.set_timesteps(steps, original_inference_steps=40, strength=strength)
    scheduler = make_scheduler(LCM)
    run = scheduler.plan_within(steps, strength, original_inference_steps=40)  # type: ignore[attr-defined]
    assert len(run) == steps
    _compare(case, run, theirs, theirs.timesteps, SHAPE[1])


@pytest.mark.parametrize("config", [X4_LOW_RES, X4_UPSCALER], ids=["ddpm", "ddim"])
@pytest.mark.parametrize("level", [0, 20, 350, 999])
def test_noise_of_any_level_for_the_upscaler(config: Config, level: int) -> None:
    image, noise = np.tanh(_noise(1)), _noise(2)
    theirs = Case(config).theirs()
    expected = theirs.add_noise(
        torch.from_numpy(image), torch.from_numpy(noise), torch.tensor([level] * len(image))
    )
    scheduler: Any = make_scheduler(config)
    _assert_close(scheduler.add_noise(image, noise, level), expected.numpy(), "noised")
    with pytest.raises(UsageError, match="no such timestep"):
        scheduler.add_noise(image, noise, 1000)


def test_latent_upscaler_reads_the_sigmas() -> None:
    theirs = Case(X2_LATENT_UPSCALER).theirs()
    theirs.set_timesteps(10)
    run = make_scheduler(X2_LATENT_UPSCALER).plan(10)
    np.testing.assert_allclose(run.sigmas, theirs.sigmas.numpy(), rtol=1e-6)


def test_embeddings_of_two_axes() -> None:
    run = make_scheduler(KANDINSKY_PRIOR).plan(5)
    latents = np.ones((2, 16), np.float32)
    assert run.step(latents, 0, latents, np.ones).latents.shape == (2, 16)


@pytest.mark.parametrize("steps", [61, 103, 995])
def test_trailing_never_takes_a_timestep_below_zero(steps: int) -> None:
    """diffusers takes one step more for these, at timestep -1: its ``arange`` rounds."""
    for name in ("ddim", "pndm", "euler", "dpm++"):
        run = make_scheduler({**_SD, "timestep_spacing": "trailing"}, name).plan(steps)
        assert len(run) == steps + (name == "pndm")
        assert run.timesteps.min() >= 0


# ---- what is not allowed


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_steps_out_of_range(name: str, steps: int) -> None:
    config = {} if name == "unclip" else _SD
    with pytest.raises(UsageError, match="number of steps"):
        make_scheduler(config, name).plan(steps)


@pytest.mark.parametrize("strength", [0.0, -0.5, 1.01, float("nan")])
def test_strength_out_of_range(strength: float) -> None:
    with pytest.raises(UsageError, match="strength is out of range"):
        make_scheduler(SD_1).plan(10, strength)
    with pytest.raises(UsageError, match="strength is out of range"):
        make_scheduler(LCM).plan_within(4, strength)  # type: ignore[attr-defined]


def test_strength_that_leaves_no_step() -> None:
    with pytest.raises(UsageError, match="no step to take") as caught:
        make_scheduler(SD_1).plan(4, 0.2)
    assert "at least 0.25" in caught.value.hint


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        (0.0, None, "denoising_start is out of range"),
        (None, 1.0, "denoising_end is out of range"),
        (0.5, 0.5, "must be below"),
        (0.52, 0.53, "no step is left"),
        (None, 0.001, "no step is left"),
    ],
)
def test_hand_over_out_of_range(start: float | None, end: float | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_scheduler(SDXL).plan(10, denoising_start=start, denoising_end=end)


def test_eta_is_ddims_alone() -> None:
    with pytest.raises(UsageError, match="eta is out of range"):
        make_scheduler(SD_1, "ddim").plan(10, eta=1.5)
    with pytest.raises(UsageError, match="EulerDiscreteScheduler has no eta"):
        make_scheduler(SD_1, "euler").plan(10, eta=0.5)


@pytest.mark.parametrize(
    ("name", "steps", "config"),
    [
        ("ddim", 1000, SD_1),  # steps_offset leads beyond the last timestep
        ("pndm", 1000, SD_1),
        ("dpm++", 1000, SD_1),  # linspace would take timesteps twice
        ("unipc", 1000, SD_1),
        ("dpm++", 1000, {**SD_1, "timestep_spacing": "leading"}),
        ("pndm", 3, {**SD_1, "skip_prk_steps": False}),
        ("lcm", 51, LCM),
        ("unclip", 1, KANDINSKY_PRIOR),
        ("ddim", 5, {**SD_1, **_ZERO_SNR, "prediction_type": "epsilon"}),
    ],
)
def test_plans_that_the_scheduler_cannot_make(name: str, steps: int, config: Config) -> None:
    with pytest.raises(UsageError):
        make_scheduler(config, name).plan(steps)


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("ddim", "prediction_type", "flow_prediction"),
        ("ddim", "beta_schedule", "sigmoid"),
        ("ddim", "timestep_spacing", "ays"),
        ("ddim", "num_train_timesteps", "1000"),
        ("ddim", "num_train_timesteps", 0),
        ("ddim", "trained_betas", [0.1, 0.2]),
        ("ddim", "shiny", True),
        ("pndm", "prediction_type", "sample"),
        ("euler-a", "prediction_type", "sample"),
        ("euler", "interpolation_type", "cubic"),
        ("dpm++", "use_flow_sigmas", True),
        ("dpm++", "solver_order", 4),
        ("dpm++", "solver_type", "rk4"),
        ("unipc", "solver_p", {"_class_name": "DDIMScheduler"}),
        ("unipc", "use_flow_sigmas", True),
        ("unipc", "predict_x0", False),
        ("unipc", "lower_order_final", False),
        ("ddpm", "variance_type", "fixed_large_log"),
        ("lcm", "original_inference_steps", 2000),
        ("unclip", "beta_schedule", "linear"),
    ],
)
def test_option_that_is_not_implemented_is_named(name: str, option: str, value: object) -> None:
    with pytest.raises(InputError, match=option) as caught:
        make_scheduler({option: value}, name)
    assert "Scheduler" in caught.value.message


def test_algorithm_that_is_not_implemented_is_named() -> None:
    config = {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver"}
    with pytest.raises(InputError, match="algorithm_type"):
        make_scheduler(config)


def test_two_sequences_of_sigmas_at_once() -> None:
    with pytest.raises(InputError, match="only one of"):
        make_scheduler({"use_karras_sigmas": True, "use_beta_sigmas": True}, "euler")


def test_unknown_names() -> None:
    with pytest.raises(UsageError, match="unknown scheduler 'heun'") as caught:
        make_scheduler(SD_1, "heun")
    assert "dpm++-karras" in caught.value.expected
    with pytest.raises(InputError, match="not implemented") as missing:
        make_scheduler({**_SD, "_class_name": "LMSDiscreteScheduler"})
    assert "LMSDiscreteScheduler" in missing.value.found
    with pytest.raises(InputError, match="names no class"):
        make_scheduler(_SD)


def test_options_that_change_nothing_are_passed_over() -> None:
    config = {
        **SD_1,
        "_use_default_values": ["beta_start"],
        "lower_order_final": False,  # DPM-Solver's
        "flow_shift": 3.0,  # of sigmas that are not used
        "use_karras_sigmas": None,
        "lambda_min_clipped": float("-inf"),
    }
    assert make_scheduler(config).options.beta_start == 0.0001
    assert make_scheduler(config, "euler").options.use_karras_sigmas is False
    assert make_scheduler(config, "dpm++").options.lower_order_final is False


def test_steps_are_taken_in_order_and_once() -> None:
    run = make_scheduler(SD_1).plan(3)
    latents = np.zeros(SHAPE, np.float32)
    with pytest.raises(UsageError, match="in order"):
        run.step(latents, 1, latents)
    for i in range(len(run)):
        run.step(latents, i, latents)
    with pytest.raises(UsageError, match="in order"):
        run.step(latents, len(run), latents)


def test_arrays_that_do_not_fit() -> None:
    latents = np.zeros(SHAPE, np.float32)
    with pytest.raises(UsageError, match="output does not fit") as caught:
        make_scheduler(KANDINSKY_DECODER).plan(3).step(latents, 0, latents, np.zeros)
    assert caught.value.expected == "(2, 8, 6, 5)"
    run = make_scheduler(SDXL_TURBO).plan(3)
    with pytest.raises(UsageError, match="source of noise"):
        run.step(latents, 0, latents)
    run = make_scheduler(SDXL_TURBO).plan(3)
    with pytest.raises(UsageError, match="noise does not fit"):
        run.step(latents, 0, latents, lambda shape: np.zeros(shape[1:]))


@pytest.mark.parametrize(
    ("name", "draws"), [("euler", 0), ("dpm++", 0), ("unipc", 0), ("euler-a", 3), ("dpm++-sde", 3)]
)
def test_noise_is_drawn_only_where_it_is_added(name: str, draws: int) -> None:
    """The last step ends without noise; the latents given are left as they are."""
    drawn: list[tuple[int, ...]] = []

    def draw(shape: tuple[int, ...]) -> Array:
        drawn.append(shape)
        return np.zeros(shape, np.float32)

    run = make_scheduler(SD_1, name).plan(4)
    latents = _noise(5)
    for i in range(4):
        before, output = latents.copy(), np.sin(latents)
        step = run.step(output, i, latents, draw)
        np.testing.assert_array_equal(latents, before)
        np.testing.assert_array_equal(output, np.sin(before))
        latents = step.latents
    assert drawn == [SHAPE] * draws
