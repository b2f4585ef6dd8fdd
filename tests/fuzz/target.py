"""What a target is: bytes in, and either nothing happens or an invariant is broken."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

#: libFuzzer's own change of bytes: (bytes, the most that it may return) -> bytes.
Change = Callable[[bytes, int], bytes]
#: A change that keeps the shape of the input, so that what lies behind its checks is reached.
Mutator = Callable[[bytes, random.Random, Change], bytes]


@dataclass(frozen=True, slots=True)
class Target:
    name: str
    reads: str  #: whose bytes, and who reads them
    holds: str  #: what is asserted beyond "no exception but the documented one"
    sources: tuple[str, ...]  #: modules of the agent whose lines count as covered or not
    check: Callable[[bytes], None]  #: raises for a finding
    seeds: Callable[[], Mapping[str, bytes]]  #: real messages, by a name for the file
    mutate: Mutator | None = None
    words: tuple[bytes, ...] = ()  #: libFuzzer's dictionary
    max_bytes: int = 4096  #: of one input
    close: Callable[[], None] = lambda: None  #: ends what the first check has begun; the next begins it anew
