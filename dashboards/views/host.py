"""What does the host do to requests?"""

from __future__ import annotations

from dashboards.panels import Look, Panel, View, latest, or_zero, quantile, quantiles, rate
from tailspan.export import semconv

_OOM_KILLS = 'kind="oom_kill"'
_SIGNALS = 'kind!="oom_kill"'


def _state(state: str) -> str:
    return rate(semconv.THREAD_TIME, where=f'state="{state}"')


#: Time in which followed threads ran, or would have if they had been let.
_WANTED = rate(semconv.THREAD_TIME, where='state=~"on_cpu|run_queue|throttled"')
_SENT_AGAIN = f"{rate(semconv.HOST_TCP_RETRANSMITTED)} / ({rate(semconv.HOST_TCP_SENT)} > 0)"

VIEW = View(
    name="host",
    title="what does the host do to requests?",
    about="CPU, network and memory of each host, as far as they hold up the workers on it.",
    rows={
        "At a glance": (
            Panel(
                "How long do ready threads wait for a CPU?",
                "99th percentile of the run-queue waits of followed threads, quotas not included",
                semconv.RUN_QUEUE_WAIT,
                "s",
                {"p99": quantile(0.99, semconv.RUN_QUEUE_WAIT)},
                Look.STAT,
            ),
            Panel(
                "What share of their CPU time do they wait for?",
                "Time in run queues, of the time in which followed threads ran or could have run",
                semconv.THREAD_TIME,
                "percentunit",
                {"waited": f"{or_zero(_state('run_queue'))} / {_WANTED}"},
                Look.STAT,
            ),
            Panel(
                "What share do their quotas take?",
                "Time out of their cgroups' CPU quota, of the same",
                semconv.THREAD_TIME,
                "percentunit",
                {"throttled": f"{or_zero(_state('throttled'))} / {_WANTED}"},
                Look.STAT,
            ),
            Panel(
                "How much CPU do others take from them?",
                "CPUs that others had while a followed thread waited for that CPU",
                semconv.TAKEN_TIME,
                "short",
                {"taken": or_zero(rate(semconv.TAKEN_TIME))},
                Look.STAT,
            ),
            Panel(
                "What share of TCP segments is sent again?",
                "Segments sent again, of those sent, on the whole host: the agent's network namespace",
                semconv.HOST_TCP_RETRANSMITTED,
                "percentunit",
                {"sent again": _SENT_AGAIN},
                Look.STAT,
            ),
            Panel(
                "How many processes were killed for want of memory?",
                "Processes a minute that the out-of-memory killer chose, on the whole host",
                semconv.INCIDENTS,
                "cpm",
                {"kills": f"60 * {rate(semconv.INCIDENTS, where=_OOM_KILLS)}"},
                Look.STAT,
            ),
        ),
        "Who gets the CPU?": (
            Panel(
                "What do followed threads do?",
                "Threads in each state, on average; blocked threads, which are most, are not drawn",
                semconv.THREAD_TIME,
                "short",
                {"{{state}}": rate(semconv.THREAD_TIME, "state", 'state!="blocked"')},
                Look.STACK,
            ),
            Panel(
                "How long is a wait for a CPU?",
                "Run-queue waits of followed threads, one by one; quotas not included",
                semconv.RUN_QUEUE_WAIT,
                "s",
                quantiles(semconv.RUN_QUEUE_WAIT),
            ),
            Panel(
                "Who takes the CPU while they wait?",
                "CPUs that the ten largest had while a followed thread waited for that CPU, by command name",
                semconv.TAKEN_TIME,
                "short",
                {"{{process}}": f"topk(10, {rate(semconv.TAKEN_TIME, 'process')})"},
                Look.STACK,
            ),
        ),
        "What do connections of workers wait for?": (
            Panel(
                "How long do connections wait to be accepted?",
                "95th percentile from the handshake to the first read; 0 where a connection was accepted in time",
                semconv.TCP_ACCEPT_WAIT,
                "s",
                {"p95": quantile(0.95, semconv.TCP_ACCEPT_WAIT)},
            ),
            Panel(
                "How long do requests lie unread?",
                "95th percentile from a request's first byte to the read of it; includes the accept queue",
                semconv.TCP_UNREAD_WAIT,
                "s",
                {"p95": quantile(0.95, semconv.TCP_UNREAD_WAIT)},
            ),
            Panel(
                "How long do upstreams take to answer?",
                "95th percentile from a worker's last send to the first byte back; waits below 1 ms are not in it",
                semconv.TCP_UPSTREAM_ANSWER,
                "s",
                {"p95": quantile(0.95, semconv.TCP_UPSTREAM_ANSWER)},
            ),
            Panel(
                "How long does connecting take?",
                "95th percentile from a worker's SYN to the connection; 1 s and more are lost SYNs",
                semconv.TCP_CONNECT_DURATION,
                "s",
                {"p95": quantile(0.95, semconv.TCP_CONNECT_DURATION)},
            ),
            Panel(
                "How soon does a new connection say something?",
                "95th percentile from a worker's first byte to its peer's, on connections that are over",
                semconv.TCP_FIRST_BYTE,
                "s",
                {"p95": quantile(0.95, semconv.TCP_FIRST_BYTE)},
            ),
            Panel(
                "How many connections end?",
                "Connections of workers that are over, a second, by who opened them; failed ones never came about",
                semconv.TCP_CONNECTIONS,
                "cps",
                {"{{role}}": rate(semconv.TCP_CONNECTIONS, "role")},
            ),
            Panel(
                "How long do connections live?",
                "Median lifetime of connections that are over, by who opened them; short ones pay for a handshake "
                "each time",
                semconv.TCP_CONNECTION_DURATION,
                "s",
                {"{{role}}": quantile(0.5, semconv.TCP_CONNECTION_DURATION, "role")},
            ),
            Panel(
                "How often is a connection used?",
                "Messages on each connection that is over: requests on accepted, answers on connected ones",
                semconv.TCP_MESSAGES,
                "short",
                {
                    "{{role}}": f"{rate(semconv.TCP_MESSAGES, 'role')}"
                    f" / ({rate(semconv.TCP_CONNECTIONS, 'role')} > 0)"
                },
            ),
            Panel(
                "What goes wrong on workers' connections?",
                "Segments sent again, resets by the peer, and operations that found the peer's window closed, a "
                "second; of connections that are over",
                semconv.TCP_RETRANSMITS,
                "cps",
                {
                    "{{role}}: sent again": rate(semconv.TCP_RETRANSMITS, "role"),
                    "{{role}}: reset": rate(semconv.TCP_RESETS, "role"),
                    "{{role}}: window closed": rate(semconv.TCP_ZERO_WINDOWS, "role"),
                },
            ),
        ),
        "How is the network of the whole host?": (
            Panel(
                "How much does TCP send again?",
                "Segments and retransmission timeouts a second, of the agent's network namespace",
                semconv.HOST_TCP_RETRANSMITTED,
                "cps",
                {
                    "segments": rate(semconv.HOST_TCP_RETRANSMITTED),
                    "SYNs": rate(semconv.HOST_TCP_SYN_RETRANSMITS),
                    "timeouts": rate(semconv.HOST_TCP_TIMEOUTS),
                },
            ),
            Panel(
                "Do listeners turn connections away?",
                "Dropped SYNs and final ACKs a second; overflows: the accept queue was full",
                semconv.HOST_TCP_LISTEN_OVERFLOWS,
                "cps",
                {
                    "overflows": rate(semconv.HOST_TCP_LISTEN_OVERFLOWS),
                    "drops": rate(semconv.HOST_TCP_LISTEN_DROPS),
                },
            ),
            Panel(
                "Do programs here read too slowly?",
                "Receive windows that went to zero and came back, and segments dropped for a full receive queue",
                semconv.HOST_TCP_WINDOWS_CLOSED,
                "cps",
                {
                    "closed": rate(semconv.HOST_TCP_WINDOWS_CLOSED),
                    "open again": rate(semconv.HOST_TCP_WINDOWS_REOPENED),
                    "segments dropped": rate(semconv.HOST_TCP_RECEIVE_DROPS),
                },
            ),
            Panel(
                "Are connections broken off?",
                "Resets sent, and established connections that ended without a close, a second",
                semconv.HOST_TCP_ESTABLISHED_RESETS,
                "cps",
                {
                    "ended without a close": rate(semconv.HOST_TCP_ESTABLISHED_RESETS),
                    "resets sent": rate(semconv.HOST_TCP_RESETS_SENT),
                },
            ),
            Panel(
                "How many connections are opened?",
                "Connections a second, by direction",
                semconv.HOST_TCP_PASSIVE_OPENS,
                "cps",
                {
                    "came in": rate(semconv.HOST_TCP_PASSIVE_OPENS),
                    "tried from here": rate(semconv.HOST_TCP_ACTIVE_OPENS),
                },
            ),
            Panel(
                "How many sockets are there?",
                "TCP sockets: in use, of which connections; and in TIME_WAIT",
                semconv.HOST_TCP_SOCKETS,
                "short",
                {
                    "in use": latest(semconv.HOST_TCP_SOCKETS),
                    "connections": latest(semconv.HOST_TCP_ESTABLISHED),
                    "TIME_WAIT": latest(semconv.HOST_TCP_TIME_WAIT),
                },
            ),
        ),
        "Who is stopped or killed?": (
            Panel(
                "Does the kernel kill for want of memory?",
                "Processes a minute that the out-of-memory killer chose, by host",
                semconv.INCIDENTS,
                "cpm",
                {"{{instance}}": f"60 * {rate(semconv.INCIDENTS, 'instance', _OOM_KILLS)}"},
            ),
            Panel(
                "Are workers stopped or told to end?",
                "Signals to followed threads a minute, by kind",
                semconv.INCIDENTS,
                "cpm",
                {"{{kind}}": f"60 * {rate(semconv.INCIDENTS, 'kind', _SIGNALS)}"},
            ),
        ),
    },
)
