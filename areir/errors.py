"""The error for whatever a user can fix."""


class UserError(ValueError):
    """Bad input. The text names the file or flag and says what to do.

    Scripts print the text as one line and exit with 2; see `utils.run_script`.
    """
