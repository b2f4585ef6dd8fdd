"""One module per fault, named as the fault, with a ``FAULT``."""
