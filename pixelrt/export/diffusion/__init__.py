"""Diffusion pipelines: from diffusers' formats to bundles of several networks."""
