"""One fault a file. Each has a ``FAULT``, see :class:`tests.scorecard.fault.Fault`, with the name of its file."""
