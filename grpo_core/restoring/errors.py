"""The errors of restoring, which tell callers whether to take whole episodes instead, or not to train at all."""


class NotBranchableError(ValueError):
    """The environment's state cannot be captured and restored."""


class FailedTrialError(NotBranchableError):
    """The environment failed in a plain reset or step, before any restore; the cause is its own error."""


class FailedResetError(FailedTrialError):
    """The very first reset failed, so the environment cannot be trained in; the cause is its own error."""


class ReplacedLayerError(NotBranchableError):
    """A wrapper holds another environment than before, which captured states do not fit."""
