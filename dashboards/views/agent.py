"""Can the answers be trusted, and what do they cost?"""

from __future__ import annotations

from dashboards.panels import Look, Panel, View, highest, latest, quantile, quantiles, rate, series
from tailspan.export import semconv

#: syscalls is off unless somebody asks for it: that it is not attached is no fault.
_DEFAULT_PROBES = 'probe!="syscalls"'
_NOT_CLOSED = 'state!="closed"'
_OF_QUEUE = f"{latest(semconv.OTLP_QUEUED, 'signal')} / {latest(semconv.OTLP_QUEUE_LIMIT, 'signal')}"
_MISSING = f"sum (1 - {series(semconv.PROBE_ATTACHED, _DEFAULT_PROBES)})"

VIEW = View(
    name="agent",
    title="can the answers be trusted, and what do they cost?",
    about="The agents themselves: what they miss, what they could not deliver, and what they take from the host.",
    rows={
        "At a glance": (
            Panel(
                "Is evidence being lost?",
                "Records, messages and rows lost, a second; a verdict whose window is touched says so",
                semconv.LOST_RECORDS,
                "cps",
                {"lost": rate(semconv.LOST_RECORDS)},
                Look.STAT,
            ),
            Panel(
                "How many probes are missing?",
                "Default probes that could not be attached, on all chosen hosts; tailspan check says why",
                semconv.PROBE_ATTACHED,
                "none",
                {"missing": _MISSING},
                Look.STAT,
            ),
            Panel(
                "How late is a verdict?",
                "99th percentile from the end of a slow request to its verdict",
                semconv.VERDICT_LATENCY,
                "s",
                {"p99": quantile(0.99, semconv.VERDICT_LATENCY)},
                Look.STAT,
            ),
            Panel(
                "How full is the fullest queue to the backend?",
                "Bytes that wait, of those that may; beyond it the oldest is dropped",
                semconv.OTLP_QUEUED,
                "percentunit",
                {"fullest": f"max ({_OF_QUEUE})"},
                Look.STAT,
            ),
            Panel(
                "What does the agent take?",
                "CPUs that the agents take: 100 % is one CPU",
                semconv.AGENT_CPU,
                "percentunit",
                {"cpu": rate(semconv.AGENT_CPU)},
                Look.STAT,
            ),
            Panel(
                "How much memory does it hold?",
                "Resident memory of the agent that holds the most",
                semconv.AGENT_MEMORY,
                "bytes",
                {"memory": highest(semconv.AGENT_MEMORY)},
                Look.STAT,
            ),
        ),
        "Can the answers be trusted?": (
            Panel(
                "What do verdicts come to?",
                "Slow requests a second by outcome; many inconclusive ones mean that evidence is missing",
                semconv.SLOW_REQUESTS,
                "reqps",
                {"{{outcome}}": rate(semconv.SLOW_REQUESTS, "outcome")},
                Look.STACK,
            ),
            Panel(
                "How soon is a slow request judged?",
                "From the end of a request to its verdict",
                semconv.VERDICT_LATENCY,
                "s",
                quantiles(semconv.VERDICT_LATENCY),
            ),
            Panel(
                "How is the thread that served a request known?",
                "Requests a second: said by the worker, from the socket that it read, from what its process "
                "did, or not at all",
                semconv.REQUESTS_JOINED,
                "reqps",
                {"{{by}}": rate(semconv.REQUESTS_JOINED, "by")},
                Look.STACK,
            ),
            Panel(
                "Which probes are missing?",
                "Hosts on which a default probe is not attached, by probe; what it shows is unknowable there",
                semconv.PROBE_ATTACHED,
                "short",
                {"{{probe}}": f"sum by (probe) (1 - {series(semconv.PROBE_ATTACHED, _DEFAULT_PROBES)})"},
            ),
            Panel(
                "How many records come in?",
                "Records that the kernel hands over, a second, by class",
                semconv.RECORDS,
                "cps",
                {"{{class}}": rate(semconv.RECORDS, "class")},
                Look.STACK,
            ),
            Panel(
                "Which evidence is lost?",
                "Losses a second by class of record",
                semconv.LOST_RECORDS,
                "cps",
                {"{{class}}": rate(semconv.LOST_RECORDS, "class")},
            ),
            Panel(
                "How many slow requests are forgotten?",
                "Slow requests a second whose evidence was not kept, because too many were slow at once",
                semconv.FORGOTTEN_REQUESTS,
                "reqps",
                {"forgotten": rate(semconv.FORGOTTEN_REQUESTS)},
            ),
            Panel(
                "Do names run over their limit?",
                "Observations a second that are kept under the name other; empty while there is room",
                semconv.LABEL_OVERFLOWS,
                "cps",
                {"{{metric}}": rate(semconv.LABEL_OVERFLOWS, "metric")},
            ),
            Panel(
                "How old is what the GPUs said?",
                "Age of the last reading of each; it grows while the driver does not answer, or the GPU is lost",
                semconv.GPU_READING_AGE,
                "s",
                {"{{hw_id}}": highest(semconv.GPU_READING_AGE, "hw_id")},
            ),
            Panel(
                "Does NVML work?",
                "Hosts by what NVML is like there; off, no_library and no_device are right on a host without GPU",
                semconv.NVML_STATE,
                "short",
                {"{{state}}": f"{latest(semconv.NVML_STATE, 'state')} > 0"},
                Look.TABLE,
            ),
            Panel(
                "Which CUDA calls come too often to be recorded?",
                "Processes where probes of a kind are off for its rate; verdicts on them lack those calls",
                semconv.GPU_PROBE_OFF,
                "short",
                {"{{kind}}": latest(semconv.GPU_PROBE_OFF, "kind")},
            ),
            Panel(
                "How many CUDA functions have a probe?",
                "Functions of followed processes that have one now; 0 while no followed process uses CUDA",
                semconv.GPU_PROBES,
                "short",
                {"{{instance}}": latest(semconv.GPU_PROBES, "instance")},
            ),
        ),
        "Does it reach the backend?": (
            Panel(
                "How much does the backend take?",
                "Spans, data points and log records a second; own: the agent's, forwarded: workers'",
                semconv.OTLP_ITEMS,
                "cps",
                {"{{signal}} {{origin}}": rate(semconv.OTLP_ITEMS, "signal, origin")},
            ),
            Panel(
                "How many bytes is that?",
                "Bytes of OTLP a second, before compression",
                semconv.OTLP_SENT,
                "Bps",
                {"{{signal}}": rate(semconv.OTLP_SENT, "signal")},
            ),
            Panel(
                "How full are the queues to the backend?",
                "Bytes that wait on disk and in memory, of those that may; beyond it the oldest is dropped",
                semconv.OTLP_QUEUED,
                "percentunit",
                {"{{signal}}": _OF_QUEUE},
            ),
            Panel(
                "For how long has the oldest waited?",
                "Age of what is at the head of each queue; 0 if nothing waits",
                semconv.OTLP_QUEUE_AGE,
                "s",
                {"{{signal}}": highest(semconv.OTLP_QUEUE_AGE, "signal")},
            ),
            Panel(
                "Is the backend left alone?",
                "Agents whose circuit breaker is not closed: open, the backend is left alone for a while; "
                "half_open, it is tried",
                semconv.OTLP_BREAKER,
                "short",
                {"{{signal}} {{state}}": latest(semconv.OTLP_BREAKER, "signal, state", _NOT_CLOSED)},
            ),
            Panel(
                "Which attempts to send fail?",
                "Attempts a second, by reason; what was to be sent is tried again. Empty while none fails",
                semconv.OTLP_FAILURES,
                "cps",
                {"{{signal}}: {{reason}}": rate(semconv.OTLP_FAILURES, "signal, reason")},
            ),
            Panel(
                "What never reached the backend?",
                "Spans, data points and log records a second, by reason",
                semconv.OTLP_DROPPED,
                "cps",
                {
                    "{{signal}} {{origin}}: {{reason}}": rate(semconv.OTLP_DROPPED, "signal, origin, reason"),
                },
            ),
            Panel(
                "How many verdicts are delivered?",
                "Verdicts a second that reached the disk or the backend",
                semconv.EXPORTED,
                "cps",
                {"{{exporter}}": rate(semconv.EXPORTED, "exporter")},
            ),
            Panel(
                "Which exporter drops verdicts?",
                "Verdicts a second that did not reach the disk or the backend; empty while all do",
                semconv.EXPORT_DROPPED,
                "cps",
                {"{{exporter}}: {{reason}}": rate(semconv.EXPORT_DROPPED, "exporter, reason")},
            ),
        ),
        "What is it told to do?": (
            Panel(
                "How many processes are followed, and why?",
                "Processes by what they are followed for: they connected, fit a rule of the configuration, or "
                "have ended a wait of one that is followed",
                semconv.FOLLOWED_PROCESSES,
                "short",
                {"{{reason}}": latest(semconv.FOLLOWED_PROCESSES, "reason")},
                Look.STACK,
            ),
            Panel(
                "Is its configuration read again?",
                "Reloads a minute; after one that failed the configuration before is kept, and the log says why",
                semconv.CONFIG_RELOADS,
                "cpm",
                {"{{outcome}}": f"60 * {rate(semconv.CONFIG_RELOADS, 'outcome')}"},
            ),
            Panel(
                "How old is the configuration that it has?",
                "When each agent has last read its configuration with success",
                semconv.CONFIG_LAST_RELOAD,
                "dateTimeFromNow",
                {"{{instance}}": f"1000 * {highest(semconv.CONFIG_LAST_RELOAD, 'instance')}"},
                Look.TABLE,
            ),
            Panel(
                "When does its certificate end?",
                "The certificate of what listens beyond loopback; nothing without one",
                semconv.TLS_EXPIRES,
                "dateTimeFromNow",
                {"{{instance}}": f"1000 * {highest(semconv.TLS_EXPIRES, 'instance')}"},
                Look.TABLE,
            ),
            Panel(
                "Are certificates read again?",
                "Changed files a minute; refused ones leave those from before in use, and the log says why",
                semconv.TLS_RELOADS,
                "cpm",
                {"{{outcome}}": f"60 * {rate(semconv.TLS_RELOADS, 'outcome')}"},
            ),
        ),
        "What do workers send?": (
            Panel(
                "How much do workers send by OTLP?",
                "Spans, data points and log records a second",
                semconv.OTLP_RECEIVED,
                "cps",
                {"{{signal}}": rate(semconv.OTLP_RECEIVED, "signal")},
            ),
            Panel(
                "Which OTLP messages are refused?",
                "Messages a second that were refused or could not be joined, by reason; empty while none is",
                semconv.OTLP_REFUSED,
                "cps",
                {"{{reason}}": rate(semconv.OTLP_REFUSED, "reason")},
            ),
            Panel(
                "Which spans do not fit into their trace?",
                "Spans of workers a second, by what is wrong with them; empty while all fit",
                semconv.OTLP_BROKEN_SPANS,
                "cps",
                {"{{reason}}": rate(semconv.OTLP_BROKEN_SPANS, "reason")},
            ),
            Panel(
                "Which worker messages are dropped?",
                "Messages a second that clients dropped or the agent refused, by reason; empty while none is",
                semconv.DROPPED_MESSAGES,
                "cps",
                {"{{reason}}": rate(semconv.DROPPED_MESSAGES, "reason")},
            ),
        ),
        "What does the agent cost?": (
            Panel(
                "How much CPU does each agent take?",
                "CPUs, by instance: 100 % is one CPU. Time in BPF programs is charged to the threads they run on",
                semconv.AGENT_CPU,
                "percentunit",
                {"{{instance}}": rate(semconv.AGENT_CPU, "instance")},
            ),
            Panel(
                "How much CPU do its BPF programs take?",
                "CPUs, by program; empty unless the kernel keeps it (kernel.bpf_stats_enabled)",
                semconv.BPF_RUN_TIME,
                "percentunit",
                {"{{program}}": rate(semconv.BPF_RUN_TIME, "program")},
                Look.STACK,
            ),
            Panel(
                "How much memory does each agent hold?",
                "Resident memory, by instance",
                semconv.AGENT_MEMORY,
                "bytes",
                {"{{instance}}": latest(semconv.AGENT_MEMORY, "instance")},
            ),
            Panel(
                "How near is each agent to its budget?",
                "CPU that it takes, as a share of budget.cpu; above 100 % for 10 s it sheds",
                semconv.BUDGET_CPU,
                "percentunit",
                {
                    "{{instance}}": f"{rate(semconv.AGENT_CPU, 'instance')} / "
                    f"({latest(semconv.BUDGET_CPU, 'instance')} > 0)"
                },
            ),
            Panel(
                "... and to its memory budget?",
                "Resident memory, as a share of budget.rss_mib",
                semconv.BUDGET_MEMORY,
                "percentunit",
                {
                    "{{instance}}": f"{latest(semconv.AGENT_MEMORY, 'instance')} / "
                    f"({latest(semconv.BUDGET_MEMORY, 'instance')} > 0)"
                },
            ),
            Panel(
                "How many steps are shed?",
                "Steps of docs/cost.md that each agent does without, to stay in its budget; verdicts say so",
                semconv.SHED_LEVEL,
                "short",
                {"{{instance}}": latest(semconv.SHED_LEVEL, "instance")},
            ),
            Panel(
                "Which steps are shed?",
                "Agents that do without a step; empty while none is shed",
                semconv.SHED_STEP,
                "short",
                {"{{step}}": f"{latest(semconv.SHED_STEP, 'step')} > 0"},
                Look.STACK,
            ),
            Panel(
                "Does it shed and take back by turns?",
                "Steps shed and restored, a minute; many of both: the budget lies just at what it costs",
                semconv.SHED_CHANGES,
                "cpm",
                {"{{direction}}": f"60 * {rate(semconv.SHED_CHANGES, 'direction')}"},
            ),
            Panel(
                "What do its probes add to a request?",
                "As last measured by tailspan cost --measure; lower and upper are the ends of the 95 % interval",
                semconv.COST_DIFFERENCE,
                "s",
                {"{{quantile}} {{bound}}": highest(semconv.COST_DIFFERENCE, "quantile, bound")},
                Look.TABLE,
            ),
            Panel(
                "When was that measured?",
                "Empty where it never was since the agent's start",
                semconv.COST_MEASURED,
                "dateTimeFromNow",
                {"{{instance}}": f"1000 * {highest(semconv.COST_MEASURED, 'instance')}"},
                Look.TABLE,
            ),
            Panel(
                "How many threads does it have?",
                "By instance; a number that only grows is a leak",
                semconv.AGENT_THREADS,
                "short",
                {"{{instance}}": latest(semconv.AGENT_THREADS, "instance")},
            ),
            Panel(
                "How many files does it have open?",
                "File descriptors, by instance; a number that only grows is a leak",
                semconv.AGENT_FILES,
                "short",
                {"{{instance}}": latest(semconv.AGENT_FILES, "instance")},
            ),
            Panel(
                "How much memory has each agent held at most?",
                "The most that was resident since its start",
                semconv.AGENT_PEAK_MEMORY,
                "bytes",
                {"{{instance}}": latest(semconv.AGENT_PEAK_MEMORY, "instance")},
            ),
            Panel(
                "How much of the recent past is held?",
                "Rows in the live window, by table",
                semconv.WINDOW_ROWS,
                "short",
                {"{{table}}": latest(semconv.WINDOW_ROWS, "table")},
            ),
            Panel(
                "How long is it inside NVML?",
                "Share of time in which the agent's thread was, waiting or not; gpu.budget bounds it",
                semconv.NVML_CALL_TIME,
                "percentunit",
                {"{{instance}}": rate(semconv.NVML_CALL_TIME, "instance")},
            ),
            Panel(
                "How often does it call NVML, and in vain?",
                "Calls a second, those that failed by NVML's error, and attempts to connect to the driver",
                semconv.NVML_CALLS,
                "cps",
                {
                    "calls": rate(semconv.NVML_CALLS),
                    "{{error}}": rate(semconv.NVML_FAILURES, "error"),
                    "attempts": rate(semconv.NVML_ATTEMPTS),
                },
            ),
        ),
    },
)
