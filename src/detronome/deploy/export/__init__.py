"""Forms of a detector that run outside Python's PyTorch: ONNX, OpenVINO, torch's own programs, TensorRT."""
