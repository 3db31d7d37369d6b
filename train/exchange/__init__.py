"""Models to hand on: safetensors and ONNX."""
