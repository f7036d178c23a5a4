"""Evaluate the policy of a job: on the way, at the end, and whether its values mean something.

- ``evaluator``: plays episodes beside a training, without disturbing it.
- On the way, as ``evaluation_callback`` says: ``periodic_evaluation``, as often as the job says;
  ``background_evaluation``, if it does not say.
- At the end: ``final_evaluation``, and ``value_check`` of the values.
- ``work_time``: the time that they may take.
"""
