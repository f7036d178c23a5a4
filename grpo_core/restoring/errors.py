"""The errors of restoring, which tell callers whether to take whole episodes instead, or not to train at all."""


class NotBranchableError(ValueError):
    """The environment's state cannot be captured and restored."""


class FailedTrialError(NotBranchableError):
    """The environment failed in a plain reset or step; the cause is its own error."""


class FailedResetError(FailedTrialError):
    """It failed in the first reset of all, so that it cannot be trained in at all; the cause is its own error."""


class ReplacedLayerError(NotBranchableError):
    """A wrapper holds another environment than before, which captured states do not fit."""
