"""Is it slow, and why?"""

from __future__ import annotations

from dashboards.panels import CHOSEN_NAMES, Look, Panel, TracePanel, View, or_zero, quantile, rate
from tailspan.export import semconv

_SLOW = 'outcome!="ordinary"'
_NAMED = 'outcome="named"'
_REQUESTS = rate(semconv.REQUEST_DURATION, where=CHOSEN_NAMES, part="_count")
_SLOW_REQUESTS = rate(semconv.REQUEST_DURATION, where=f"{CHOSEN_NAMES}, {_SLOW}", part="_count")
_TIME_OF_ALL = rate(semconv.REQUEST_DURATION, part="_sum")
_VERDICT = semconv.VERDICT_SPAN.name


def _attribute(attribute: semconv.Attribute) -> str:
    return f"span.{attribute.name}"


_COLUMNS = ", ".join(
    _attribute(attribute)
    for attribute in (
        semconv.REQUEST_NAME,
        semconv.CAUSE,
        semconv.CULPRIT_LABEL,
        semconv.EXCESS,
        semconv.SENTENCE,
    )
)

VIEW = View(
    name="requests",
    title="is it slow, and why?",
    about="Requests of the inference workers of each host, what they wait for, and who is to blame.",
    by_request_name=True,
    rows={
        "At a glance": (
            Panel(
                "How many requests are served?",
                "Requests that workers reported, a second",
                semconv.REQUEST_DURATION,
                "reqps",
                {"requests": _REQUESTS},
                Look.STAT,
            ),
            Panel(
                "What share of them is slow?",
                "Requests that were slow for their like, of all",
                semconv.REQUEST_DURATION,
                "percentunit",
                {"slow": f"{or_zero(_SLOW_REQUESTS)} / {_REQUESTS}"},
                Look.STAT,
            ),
            Panel(
                "How slow is the slowest 1 %?",
                "99th percentile of all chosen names together",
                semconv.REQUEST_DURATION,
                "s",
                {"p99": quantile(0.99, semconv.REQUEST_DURATION, where=CHOSEN_NAMES)},
                Look.STAT,
            ),
            Panel(
                "What share of all time is lost?",
                "Time that slow requests took above what is usual for their like, of the time of all requests; of "
                "every name, since the counter has none",
                semconv.LOST_TIME,
                "percentunit",
                {"lost": f"{or_zero(rate(semconv.LOST_TIME))} / {_TIME_OF_ALL}"},
                Look.STAT,
            ),
            Panel(
                "What share of verdicts names a cause?",
                "Of all verdicts; the rest is inconclusive, unjudged, or the request's own work",
                semconv.SLOW_REQUESTS,
                "percentunit",
                {"named": f"{or_zero(rate(semconv.SLOW_REQUESTS, where=_NAMED))} / {rate(semconv.SLOW_REQUESTS)}"},
                Look.STAT,
            ),
        ),
        "Is it slow, and why?": (
            Panel(
                "Why are requests slow?",
                "Slow requests a second, by the cause that the verdict names; none: it names no cause",
                semconv.SLOW_REQUESTS,
                "reqps",
                {"{{cause}}": rate(semconv.SLOW_REQUESTS, "cause")},
                Look.STACK,
            ),
            Panel(
                "What costs the most time?",
                "Seconds that slow requests lose, each second, by the cause of their verdict",
                semconv.LOST_TIME,
                "s",
                {"{{cause}}": rate(semconv.LOST_TIME, "cause")},
                Look.STACK,
            ),
            Panel(
                "What kind of culprit takes it?",
                "The same seconds by the kind of the culprit: process is another process, own the worker's own, "
                "none that nobody is accused. Who it was is in the table below",
                semconv.LOST_TIME,
                "s",
                {"{{culprit}}": rate(semconv.LOST_TIME, "culprit")},
                Look.STACK,
            ),
            Panel(
                "Which requests are hit, and by what?",
                "Slow requests a second, by name and cause",
                semconv.REQUEST_DURATION,
                "reqps",
                {
                    "{{name}}: {{cause}}": rate(
                        semconv.REQUEST_DURATION, "name, cause", f"{CHOSEN_NAMES}, {_SLOW}", "_count"
                    )
                },
                Look.STACK,
            ),
            Panel(
                "What does a request spend its time on?",
                "Mean wall time of a request, slow or not, by what it was spent on; stacked, it is the whole",
                semconv.REQUEST_TIME,
                "s",
                {
                    "{{cause}}": f"{rate(semconv.REQUEST_TIME, 'cause', CHOSEN_NAMES)}"
                    f" / on () group_left () {_REQUESTS}"
                },
                Look.STACK,
            ),
            Panel(
                "Do requests fail?",
                "Requests a second, by the status that the worker gave",
                semconv.REQUEST_DURATION,
                "reqps",
                {"{{status}}": rate(semconv.REQUEST_DURATION, "status", CHOSEN_NAMES, "_count")},
                Look.STACK,
            ),
        ),
        "How long do they take?": (
            *(
                Panel(
                    f"How long does {what} take, by name?",
                    f"{which} percentile; a dot is one slow request and leads to its trace",
                    semconv.REQUEST_DURATION,
                    "s",
                    {"{{name}}": quantile(share, semconv.REQUEST_DURATION, "name", CHOSEN_NAMES)},
                    exemplars=True,
                )
                for what, which, share in (
                    ("a typical request", "50th", 0.5),
                    ("one request in twenty", "95th", 0.95),
                    ("one request in a hundred", "99th", 0.99),
                )
            ),
            Panel(
                "Is one model or version slower than another?",
                "95th percentile by model and version",
                semconv.REQUEST_DURATION,
                "s",
                {
                    "{{model}} {{version}}": quantile(
                        0.95, semconv.REQUEST_DURATION, "model, version", CHOSEN_NAMES
                    )
                },
            ),
            Panel(
                "How slow does each cause make a request?",
                "Median of the slow requests of each cause",
                semconv.REQUEST_DURATION,
                "s",
                {"{{cause}}": quantile(0.5, semconv.REQUEST_DURATION, "cause", f"{CHOSEN_NAMES}, {_SLOW}")},
            ),
        ),
        "Which ones?": (
            TracePanel(
                "Which requests were slow, and who is to blame?",
                "Verdicts in the trace store; the id leads to the trace. Sorted by duration, of the 50 that the "
                "store finds first",
                semconv.VERDICT_SPAN,
                "none",
                f'{{ name = "{_VERDICT}" }} | select({_COLUMNS})',
                Look.TABLE,
            ),
            TracePanel(
                "Whom do verdicts name?",
                "Verdicts a second, by culprit. It takes a trace store that keeps metrics of spans (Tempo: the "
                "local-blocks processor)",
                semconv.VERDICT_SPAN,
                "reqps",
                f'{{ name = "{_VERDICT}" }} | rate() by ({_attribute(semconv.CULPRIT_LABEL)})',
                Look.STACK,
            ),
        ),
    },
)
