"""The one exception raised for a user's mistake."""


class InputError(ValueError):
    """Input that cannot be used: the message is one sentence that says what is wrong and what to change.

    It is raised before any computation and before anything is written. The command line prints the same sentence and
    exits with code 2.

    Example:
        >>> from adaptax.errors import InputError
        >>> issubclass(InputError, ValueError)
        True
    """
