"""The arguments of ``GRPO``: hyperparameters, ``policy_kwargs``, presets and rewards.

- ``hyperparameters``: the one table of them. ``choices`` are the values of named options, ``checks`` refuses what does
  not fit, ``unknown_arguments`` says which one may be meant, and ``hyperparameters_json`` puts them into model files.
- ``policies``: which there are, and which suits an environment. ``policy_kwargs`` checks what one is made of, and
  ``network_json`` puts its networks into model files.
- ``presets``: tuned settings, and how their sizes are fitted to given ones.
- ``rewards``: the reward functions that have names.
"""
