"""Graph passes on onnx-ir: one file per pass, each a function from a model to a new model."""
