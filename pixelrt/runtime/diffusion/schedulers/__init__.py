"""Schedulers of diffusion models in numpy, step by step as diffusers 0.42 computes them.

::

    scheduler = make_scheduler(config)             # or make_scheduler(config, "dpm++-karras")
    run = scheduler.plan(30, strength=0.6)
    latents = run.add_noise(latents, noise)        # or noise * run.initial_noise_scale
    for i, timestep in enumerate(run.timesteps):
        output = unet(run.scale_input(latents, i), timestep)
        latents, preview = run.step(output, i, latents, draw_noise)

A scheduler is immutable; a run holds the state of one image and is used once.
"""

from pixelrt.runtime.diffusion.schedulers.base import Noise, Run, Scheduler, Step
from pixelrt.runtime.diffusion.schedulers.registry import NAMES, make_scheduler

__all__ = ["NAMES", "Noise", "Run", "Scheduler", "Step", "make_scheduler"]
