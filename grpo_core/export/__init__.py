"""Policies as files for other programs: ONNX and TorchScript, which choose the same most likely actions.

- ``policy_file``: which formats there are, and what they need.
- ``forward``: the steps from observations to actions, which ``onnx_file`` and ``torchscript_file`` write down.
"""
