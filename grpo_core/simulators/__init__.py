"""Drive the simulators behind a vectorised environment one by one.

``making`` makes a ``bank``: a ``local_bank``, or one of ``worker_banks``. An environment that is restored is driven by
a ``single_env``: here, or in its worker inside a ``restorable_wrapper``.
"""
