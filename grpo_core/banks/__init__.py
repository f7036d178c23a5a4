"""Drive the simulators behind a vectorised environment one by one.

To read in this order: ``choose_bank`` makes a ``bank``, which is a ``local_bank`` or one of ``worker_banks``; a
``single_env`` drives one environment, here or in its worker inside a ``restorable_wrapper``. ``visits`` notices others
that step one in between, ``vec_wrappers`` and ``rewrapping`` deal with what is around them, and ``episode_rows`` with
monitors.
"""
