"""The words of OTLP that more than one part of the agent says."""

from __future__ import annotations

import base64
import json
from enum import StrEnum
from typing import Any


class Signal(StrEnum):
    """What a payload is about. The value is the end of its URL path: ``/v1/traces``."""

    TRACES = "traces"
    METRICS = "metrics"
    LOGS = "logs"


class Origin(StrEnum):
    """Who made a payload that leaves."""

    OWN = "own"  #: the agent itself
    FORWARDED = "forwarded"  #: a program that sent it to the agent's receiver


_IDS = frozenset({"traceId", "spanId", "parentSpanId"})


def parse_json(payload: bytes, message: Any) -> None:
    """Fill a protobuf message of OTLP from its JSON form; unknown fields are ignored.

    Raises ValueError where it is no OTLP/JSON. That differs from protobuf's own JSON in the ids, which are hex.
    """
    from google.protobuf import json_format  # costs 5 MB, and few send JSON

    try:
        body = json.loads(payload)
        if not isinstance(body, dict):
            raise ValueError("not an object")
        json_format.ParseDict(_ids_in_base64(body), message, ignore_unknown_fields=True)
    except (json_format.Error, RecursionError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"no OTLP/JSON: {error}") from None


def _ids_in_base64(value: Any) -> Any:
    if isinstance(value, list):
        return [_ids_in_base64(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: base64.b64encode(bytes.fromhex(item)).decode()
        if key in _IDS and isinstance(item, str)
        else _ids_in_base64(item)
        for key, item in value.items()
    }
