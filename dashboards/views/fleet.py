"""Which hosts need looking at?"""

from __future__ import annotations

from dashboards.panels import UP, Look, Panel, View, latest, or_zero, quantile, rate, series
from tailspan.export import semconv
from tailspan.export.semconv import Metric

_DEFAULT_PROBES = 'probe!="syscalls"'
_SLOW = 'outcome!="ordinary"'
_ACCUSED = 'culprit!="none"'
_NOT_OK = 'hw_state!="ok"'
_NOT_WELL = 'state=~"warning|critical"'
_REQUESTS = rate(semconv.REQUEST_DURATION, part="_count")
_OF_HOST = rate(semconv.REQUEST_DURATION, "instance", part="_count")
_SLOW_OF_HOST = rate(semconv.REQUEST_DURATION, "instance", _SLOW, "_count")


def _ten(query: str) -> str:
    return f"topk(10, {query})"


def _ten_lowest(metric: Metric, by: str) -> str:
    return f"bottomk(10, min by ({by}) ({series(metric)}))"


VIEW = View(
    name="fleet",
    title="which hosts need looking at?",
    about="All hosts at once: where requests are slow and why, and which agents are down or miss something.",
    rows={
        "At a glance": (
            Panel(
                "How many agents are up?",
                "Agents that Prometheus could scrape",
                UP,
                "short",
                {"up": latest(UP)},
                Look.STAT,
            ),
            Panel(
                "How many are down?",
                "Agents that Prometheus knows of and could not scrape",
                UP,
                "short",
                {"down": f"sum (1 - {series(UP)})"},
                Look.STAT,
            ),
            Panel(
                "How many hosts are not healthy?",
                "Hosts that are in the state warning or critical, by their own or their worst worker's score",
                semconv.HOST_HEALTH_STATE,
                "short",
                {"not healthy": or_zero(latest(semconv.HOST_HEALTH_STATE, "", _NOT_WELL))},
                Look.STAT,
            ),
            Panel(
                "How many requests are served in all?",
                "Requests that workers reported, a second",
                semconv.REQUEST_DURATION,
                "reqps",
                {"requests": _REQUESTS},
                Look.STAT,
            ),
            Panel(
                "What share of all requests is slow?",
                "Requests that were slow for their like, of all",
                semconv.REQUEST_DURATION,
                "percentunit",
                {"slow": f"{or_zero(rate(semconv.REQUEST_DURATION, '', _SLOW, '_count'))} / {_REQUESTS}"},
                Look.STAT,
            ),
            Panel(
                "How many hosts lose evidence?",
                "Hosts on which any record, message or row was lost just now",
                semconv.LOST_RECORDS,
                "short",
                {"losing": or_zero(f"count ({rate(semconv.LOST_RECORDS, 'instance')} > 0)")},
                Look.STAT,
            ),
            Panel(
                "How many GPUs of the fleet are not well?",
                "GPUs that are lost, or whose memory fails",
                semconv.HW_STATUS,
                "short",
                {"not ok": or_zero(latest(semconv.HW_STATUS, "", _NOT_OK))},
                Look.STAT,
            ),
        ),
        "How well are hosts and workers?": (
            Panel(
                "Which hosts are the least healthy?",
                "Score, 0 to 100, the ten lowest; below 70 it is a warning and below 40 critical, unless health.* "
                "says otherwise",
                semconv.HOST_HEALTH_SCORE,
                "short",
                {"{{instance}}": _ten_lowest(semconv.HOST_HEALTH_SCORE, "instance")},
            ),
            Panel(
                "Which workers are the least healthy?",
                "The same of each service on each host, the ten lowest; tailspan health on the host says why",
                semconv.WORKER_HEALTH_SCORE,
                "short",
                {"{{instance}}: {{service}}": _ten_lowest(semconv.WORKER_HEALTH_SCORE, "instance, service")},
            ),
            Panel(
                "What is it that lowers their score?",
                "Parts that a score is made of, the ten lowest; 100 % is good. load: waiting for CPUs; latency: "
                "slow requests",
                semconv.WORKER_HEALTH_PART,
                "percentunit",
                {
                    "{{instance}}: {{service}} {{part}}": _ten_lowest(
                        semconv.WORKER_HEALTH_PART, "instance, service, part"
                    )
                },
            ),
        ),
        "Where are requests slow, and why?": (
            Panel(
                "On which hosts are requests slow?",
                "Share of a host's requests, the ten largest; where one stands out, the trouble is its own",
                semconv.REQUEST_DURATION,
                "percentunit",
                {"{{instance}}": _ten(f"{_SLOW_OF_HOST} / ({_OF_HOST} > 0)")},
            ),
            Panel(
                "Which causes make requests slow in the fleet?",
                "Slow requests a second by cause; one cause on all hosts is something that they share",
                semconv.SLOW_REQUESTS,
                "reqps",
                {"{{cause}}": rate(semconv.SLOW_REQUESTS, "cause")},
                Look.STACK,
            ),
            Panel(
                "Which host loses time to what?",
                "Seconds that slow requests lose, each second, the ten largest pairs of host and cause",
                semconv.LOST_TIME,
                "s",
                {"{{instance}}: {{cause}}": _ten(rate(semconv.LOST_TIME, "instance, cause"))},
            ),
            Panel(
                "Which kinds of culprit are at work, and where?",
                "The same seconds where somebody is accused, the ten largest pairs of host and kind of culprit",
                semconv.LOST_TIME,
                "s",
                {"{{instance}}: {{culprit}}": _ten(rate(semconv.LOST_TIME, "instance, culprit", _ACCUSED))},
            ),
            Panel(
                "Which programs take the CPU from workers?",
                "CPUs that programs of a command name had while a followed thread waited, over all hosts; the ten "
                "largest",
                semconv.TAKEN_TIME,
                "short",
                {"{{process}}": _ten(rate(semconv.TAKEN_TIME, "process"))},
            ),
            Panel(
                "On which hosts are requests the slowest?",
                "99th percentile, the ten largest",
                semconv.REQUEST_DURATION,
                "s",
                {"{{instance}}": _ten(quantile(0.99, semconv.REQUEST_DURATION, "instance"))},
            ),
        ),
        "Are the agents well?": (
            Panel(
                "Which agents are down?",
                "Agents that could not be scraped; nothing is known of their hosts' requests meanwhile",
                UP,
                "short",
                {"{{instance}}": f"{latest(UP, 'instance')} == 0"},
                Look.TABLE,
            ),
            Panel(
                "Which versions run?",
                "Agents by version",
                semconv.BUILD_INFO,
                "short",
                {"{{version}}": latest(semconv.BUILD_INFO, "version")},
                Look.TABLE,
            ),
            Panel(
                "Which hosts lack probes?",
                "Default probes that could not be attached; tailspan check on the host says why",
                semconv.PROBE_ATTACHED,
                "short",
                {"{{instance}}": f"sum by (instance) (1 - {series(semconv.PROBE_ATTACHED, _DEFAULT_PROBES)}) > 0"},
                Look.TABLE,
            ),
            Panel(
                "Which hosts lose evidence?",
                "Losses a second, the ten largest",
                semconv.LOST_RECORDS,
                "cps",
                {"{{instance}}": _ten(rate(semconv.LOST_RECORDS, "instance"))},
            ),
            Panel(
                "Which agents cannot deliver?",
                "Bytes that wait for the backend, of those that may, the ten fullest",
                semconv.OTLP_QUEUED,
                "percentunit",
                {
                    "{{instance}} {{signal}}": _ten(
                        f"{latest(semconv.OTLP_QUEUED, 'instance, signal')}"
                        f" / {latest(semconv.OTLP_QUEUE_LIMIT, 'instance, signal')}"
                    )
                },
            ),
            Panel(
                "Which agents take the most CPU?",
                "CPUs, the ten largest: 100 % is one CPU",
                semconv.AGENT_CPU,
                "percentunit",
                {"{{instance}}": _ten(rate(semconv.AGENT_CPU, "instance"))},
            ),
        ),
    },
)
