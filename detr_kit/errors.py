"""The one exception that means: the user can mend this, and the message says how."""


class DetrKitError(Exception):
    """Something a user gave is wrong; the message names the file, key or annotation.

    Commands print the message as one line and exit with a status other than 0.
    """
