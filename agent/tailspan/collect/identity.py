"""Whose a cgroup is: container, image, pod, namespace, unit, under OpenTelemetry's names for a resource.

The path alone says some (:mod:`tailspan.collect.identity_path`); files of the runtime and the kubelet say the rest
(:mod:`tailspan.collect.identity_files`). ``container.image.tags``, a list in OpenTelemetry, is text here, with
commas between: a tag cannot hold one. A unit has no name of theirs: ``tailspan.systemd.unit``.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from tailspan import log
from tailspan.collect.identity_files import clean, read_names
from tailspan.collect.identity_path import CgroupName, parse

logger = logging.getLogger(__name__)

MAX_CGROUPS = 4096
#: Cgroups whose files are still to be read; of more the path alone is known, until they are asked for again.
MAX_ASKED = 256
#: How long a caller waits for files that were never read before; they may lie on a disk that is busy.
PATIENCE_S = 0.05
#: A container runs before all its files are there: they are looked for again so often, and for so long.
RETRY_S = 3.0
YOUNG_S = 60.0

#: One of them is known as soon as the container's own file is there, and not only its pod's.
_OF_CONTAINER = frozenset({"container.name", "container.image.name", "k8s.container.name"})


@dataclass(slots=True)
class _Entry:
    name: CgroupName
    identity: dict[str, str]
    asked_s: float = -RETRY_S
    first_s: float = field(default_factory=time.monotonic)
    pending: bool = False
    complete: bool = False

    def due(self) -> bool:
        now = time.monotonic()
        young = now - self.first_s < YOUNG_S
        return not (self.complete or self.pending) and young and now - self.asked_s >= RETRY_S


class Identities:
    """cgroup path -> resource attributes. Remembers the last ``MAX_CGROUPS`` that were asked for.

    Files are read by a thread of its own, so that a disk that hangs keeps nobody. Never raises.
    """

    def __init__(self, root: Path = Path("/"), node: str = "") -> None:
        """``root``: where the host's files are. ``node``: ``k8s.node.name`` of what is in a pod; "" for none."""
        self._root, self._node = root, clean(node)
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._asked: deque[_Entry] = deque()
        self._changed = threading.Condition()
        self._reader: threading.Thread | None = None
        self._closed = False

    def of(self, paths: Collection[str]) -> dict[str, dict[str, str]]:
        """Of those paths that are a container's, a pod's or a unit's. Takes at most PATIENCE_S."""
        wanted = dict.fromkeys(paths)
        with self._changed:
            new = [path for path in wanted if path not in self._entries]
            entries = {path: self._entry(path) for path in wanted}
            for entry in entries.values():
                if entry.due():
                    self._ask(entry)
            while len(self._entries) > MAX_CGROUPS:
                self._entries.popitem(last=False)
            self._changed.wait_for(lambda: not any(entries[path].pending for path in new), PATIENCE_S)
            return {path: dict(entry.identity) for path, entry in entries.items() if entry.identity}

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._reader:
            self._reader.join(timeout=1)

    def _entry(self, path: str) -> _Entry:
        entry = self._entries.get(path)
        if entry is None:
            name = parse(path)
            identity = self._attributes(name, {})
            entry = self._entries[path] = _Entry(name, identity, complete=not (name.container_id or name.pod_uid))
        self._entries.move_to_end(path)
        return entry

    def _ask(self, entry: _Entry) -> None:
        if self._closed or len(self._asked) >= MAX_ASKED:
            return
        entry.asked_s, entry.pending = time.monotonic(), True
        self._asked.append(entry)
        if self._reader is None:
            self._reader = threading.Thread(target=self._read, name="identities", daemon=True)
            self._reader.start()
        self._changed.notify_all()

    def _read(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._asked or self._closed)
                if self._closed:
                    return
                entry = self._asked.popleft()
            found: dict[str, str] = {}
            try:
                found = read_names(self._root, entry.name)
            except Exception as error:  # whatever somebody has put into a file, the next one is read
                log.once_per(60, "identity", logger, "cannot make out what %s is: %r", entry.name, error)
            with self._changed:
                entry.identity |= self._attributes(entry.name, found)
                entry.complete = bool(_OF_CONTAINER & found.keys() if entry.name.container_id else found)
                entry.pending = False
                self._changed.notify_all()

    def _attributes(self, name: CgroupName, found: dict[str, str]) -> dict[str, str]:
        said = {
            "container.id": name.container_id,
            "container.name": name.container_name,
            "k8s.pod.uid": name.pod_uid,
            "k8s.node.name": self._node if name.pod_uid or "k8s.pod.name" in found else "",
            "tailspan.systemd.unit": name.unit,
        }
        return found | {attribute: text for attribute, value in said.items() if (text := clean(value))}
