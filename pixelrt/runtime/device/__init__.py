"""A GPU: memory, streams, tiles and CUDA graphs around an engine; no kernels of ours."""
