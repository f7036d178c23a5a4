"""What is raised where an environment returns what it must not."""


class InvalidEnvironmentError(ValueError):
    """A method of an environment returns what it must not; the message names the method, what came, and the remedy."""
