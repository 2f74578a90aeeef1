"""What can go wrong with an import as a whole; a bad row is not an error but a rejected row."""


class ImportRefused(Exception):
    """The file was not imported and nothing was changed.

    The file cannot be read, its header does not fit, the rejects file cannot be written, or the
    same kind of import is running already. The message says which, and how to mend it.
    """


class ImportFailed(Exception):
    """The import broke off in the database, which keeps all of a file or nothing of it.

    The message has the database's own words. Importing the same file again is always safe.
    """
