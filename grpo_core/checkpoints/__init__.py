"""A training under way, in a file from which it goes on as if it had never been interrupted.

- ``training_file``: keeps the latest one of a script's training, and goes on from it.
- ``checkpoint``: takes one, reads it, and puts a training back. ``facts``: what the service reads of it without torch.
- ``simulators``: the simulators' part of it. ``objects``: describes their states in JSON and arrays, and
  makes them again without running what they name.
"""
