"""TensorRT plans as files: what they take, what they are bound to, where they are kept."""
