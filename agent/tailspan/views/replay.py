"""One judged request as one line: fixed columns and the sentence, whatever the terminal."""

from __future__ import annotations

from tailspan.attribute.verdict import Verdict
from tailspan.export.semconv import cause_name
from tailspan.views.table import ms, plain


def line(verdict: Verdict) -> str:
    """``trace/span  wall ms  outcome  cause  sentence``; the same verdict gives the same bytes."""
    request = verdict.request
    return (
        f"{request.trace_id}/{request.span_id}  {ms(request.wall_ns):>9} ms  {verdict.outcome:<12}"
        f"  {cause_name(verdict.cause):<9}  {plain(verdict.sentence)}"
    )
