"""What a cgroup's path says by itself: the container, the pod, the systemd unit."""

from __future__ import annotations

import re
from dataclasses import dataclass

_HEX = "[0-9a-f]"
#: ``docker-ID.scope``, ``cri-containerd-ID.scope``, ``crio-ID``, ``SLICE:cri-containerd:ID``, ``ID``
_CONTAINER = re.compile(rf"(?:.*[-:])?({_HEX}{{64}})(?:\.scope)?")
#: ``kubepods-burstable-podUID.slice`` with underscores in it, ``podUID``; the UID of a static pod is a hash.
_POD = re.compile(
    rf"(?:(?:.*-)?pod({_HEX}{{8}}(?:_{_HEX}{{4}}){{3}}_{_HEX}{{12}}|{_HEX}{{32}})\.slice"
    rf"|pod({_HEX}{{8}}(?:-{_HEX}{{4}}){{3}}-{_HEX}{{12}}|{_HEX}{{32}}))"
)
#: systemd-nspawn's service, a machine that is registered with systemd but is no virtual one, LXC's group
_MACHINE = re.compile(r"systemd-nspawn@(.+)\.service|machine-(?!qemu)(.+)\.scope|lxc\.payload\.(.+)")
_ESCAPED = re.compile(rf"\\x({_HEX}{{2}})")


@dataclass(frozen=True, slots=True)
class CgroupName:
    """ "" where the path does not say."""

    container_id: str = ""  #: 64 lower-case hex digits
    container_name: str = ""
    pod_uid: str = ""
    unit: str = ""  #: the innermost service or scope; of a container's own systemd, where it is one of that


def parse(path: str) -> CgroupName:
    """Of a path below the hierarchy's root, cgroup v1 or v2.

    Of groups inside one another (a cluster whose nodes are containers) the innermost counts. So a container that
    may make cgroups can name one as if it were another container's: one that may do so is trusted with more.
    """
    container_id = container_name = pod_uid = unit = ""
    for part in path.split("/"):
        # Not the monitor that Podman and CRI-O run beside each container, in a scope with its id.
        if "conmon" not in part and (container := _CONTAINER.fullmatch(part)):
            container_id, container_name, unit = container[1], "", ""
        elif pod := _POD.fullmatch(part):
            pod_uid = (pod[1] or pod[2]).replace("_", "-")
            container_id = container_name = unit = ""
        elif machine := _MACHINE.fullmatch(part):
            container_id, container_name, unit = "", _unescaped(machine[1] or machine[2] or machine[3]), ""
        elif part.endswith((".service", ".scope")) and not (part == "init.scope" and unit):
            unit = part
    return CgroupName(container_id, container_name, pod_uid, unit)


def _unescaped(name: str) -> str:
    """A unit's name holds ``\\x2d`` for ``-``."""
    return _ESCAPED.sub(lambda match: chr(int(match[1], 16)), name)
