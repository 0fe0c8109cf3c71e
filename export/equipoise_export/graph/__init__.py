"""What capture, passes and proof share: the marker, ONNX Runtime sessions, where weights lie."""
