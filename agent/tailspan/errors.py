"""Every error that tailspan raises on purpose.

::

    TailspanError                 printed by main() as one line; exit code in ``exit_code``
    ├── UsageError        (2)     the command line or the configuration is wrong
    ├── CannotError       (3)     this machine or user cannot do it; says what is missing and how to get it
    │   └── ProbeError            a BPF program cannot be loaded or attached
    ├── NotFoundError     (1)     nothing by that name in the store
    ├── MessageError              a worker's message is malformed (counted and dropped by the agent)
    └── SegmentError      (3)     a stored segment cannot be read
"""


class TailspanError(Exception):
    exit_code = 3


class UsageError(TailspanError):
    exit_code = 2


class CannotError(TailspanError):
    exit_code = 3


class ProbeError(CannotError):
    pass


class NotFoundError(TailspanError):
    exit_code = 1


class MessageError(TailspanError):
    """``reason`` is a short constant that names the class of fault in the drop counter."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


class SegmentError(TailspanError):
    pass
