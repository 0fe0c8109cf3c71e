"""What a user hands in: a factory with a checkpoint, a MONAI bundle or an ONNX file."""
