"""Why a file is not read as a model."""


class ModelFileError(ValueError):
    """The file is damaged, or its content does not match its metadata."""


class OwnPartsError(ModelFileError):
    """The policy has parts that no model file holds, such as a features extractor of the user's own."""


class ForeignModelError(ModelFileError):
    """The file is a zip that this library did not write, such as another SB3 model, whose pickles are not run."""
