"""Policies as files for other programs: ONNX and TorchScript, which choose the same most likely actions."""
