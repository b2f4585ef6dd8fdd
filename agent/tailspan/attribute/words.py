"""Raw bytes of records as people write them."""

from __future__ import annotations

import ipaddress


def endpoint(raw: bytes, port: int) -> str:
    """``10.0.0.7:8080`` or ``[2001:db8::7]:8080``; numpy has cut trailing zero bytes off ``raw``."""
    address = ipaddress.IPv6Address(bytes(raw).ljust(16, b"\0"))
    mapped = address.ipv4_mapped
    return f"{mapped}:{port}" if mapped else f"[{address}]:{port}"


def text(raw: bytes) -> str:
    return bytes(raw).decode(errors="replace")
