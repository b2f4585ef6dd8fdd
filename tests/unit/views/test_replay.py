from __future__ import annotations

from tailspan.views import replay
from tests.builders import SPAN_ID, TRACE_ID, sample_verdict


def test_one_request_is_one_line_with_its_whole_sentence() -> None:
    line = replay.line(sample_verdict(sentence="because\n" + "x" * 200))
    assert line.startswith(f"{TRACE_ID}/{SPAN_ID}      412.3 ms  named         run_queue  because?")
    assert line.endswith("x" * 200)
    assert "\n" not in line
