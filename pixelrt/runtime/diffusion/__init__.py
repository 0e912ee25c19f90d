"""Diffusion pipelines: what turns networks of a bundle into a sampled image."""
