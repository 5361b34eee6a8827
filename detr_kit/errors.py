"""What tells users that something they gave is wrong, or may be."""


class DetrKitError(Exception):
    """Something a user gave is wrong; the message names the file, key or annotation.

    Commands print the message as one line and exit with a status other than 0.
    """


def require(holds: bool, message: str) -> None:
    """Raise DetrKitError with the message unless something holds."""
    if not holds:
        raise DetrKitError(message)


class DetrKitWarning(UserWarning):
    """Something a user gave may be wrong, or could not be done as asked; work goes on.

    Commands print the message as one line.
    """
