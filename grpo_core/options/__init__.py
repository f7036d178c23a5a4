"""The arguments of ``GRPO``: hyperparameters, ``policy_kwargs``, presets and rewards."""
