"""Make environments, with arguments and named wrappers, and check what they hand over.

- ``making``: from a name to an environment. ``env_kwargs`` says which arguments it takes, ``wrappers`` which wrappers
  have names, and ``packages`` what to install where something is missing.
- ``first_calls``: checks what the first reset and the first step return; ``flags`` and ``action_masks`` read
  parts of that.
- ``registered_limits``: the time limit and the reward threshold of a registration.
- ``nested``: the layers of an environment, and their attributes.
- ``errors``: what is raised where an environment returns what it must not.
"""
