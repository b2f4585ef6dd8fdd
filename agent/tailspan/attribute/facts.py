"""What else is known of a request's time: facts beside the ledger, in words, the telling ones only."""

from __future__ import annotations

import numpy as np

from tailspan.attribute.gpu_words import gpu_facts
from tailspan.attribute.verdict import Step
from tailspan.attribute.words import endpoint, text
from tailspan.timeline.arrivals import began
from tailspan.timeline.evidence import Evidence, Table
from tailspan.wire.events import IncidentKind, SocketFlags

#: Below it page faults are a program's daily bread.
MANY_FAULTS = 1_000
#: A CPU below this share of its highest frequency is slow.
SLOW_CLOCK = 0.9
_SIGNALS = {9: "SIGKILL", 15: "SIGTERM", 18: "SIGCONT", 19: "SIGSTOP", 20: "SIGTSTP", 21: "SIGTTIN", 22: "SIGTTOU"}


def facts(evidence: Evidence, index: int, steps: tuple[Step, ...], gpu: int) -> tuple[str, ...]:
    """``gpu``: row of ``Meta.gpus`` that it ran on; -1: none, or not known which."""
    request = evidence.requests[index]
    start, end = int(began(evidence.requests[index : index + 1])[0]), int(request["end_mono_ns"])
    tids = {step.tid for step in steps if step.tid}
    cycles = evidence.cycles
    cycles = cycles[(cycles["on_mono_ns"] > start) & (cycles["run_mono_ns"] < end)]
    cycles = cycles[np.isin(cycles["tid"], list(tids))]
    return (
        *_connections(evidence, request, start, end, tids),
        *_faults(cycles),
        *_migrations(cycles),
        *_clocks(evidence.samples, start, end, cycles),
        *gpu_facts(evidence, index, gpu, steps),
        *_incidents(evidence.incidents, int(request["tgid"]), start, end),
    )


def _connections(evidence: Evidence, request: Table, start: int, end: int, tids: set[int]) -> list[str]:
    """The request's own connection, and those it waited on."""
    sockets = evidence.sockets
    came = (sockets["arrived_mono_ns"] == request["arrived_mono_ns"]) & (sockets["tgid"] == request["tgid"])
    came &= request["arrived_mono_ns"] > 0
    waited = (sockets["to_mono_ns"] > start) & (sockets["from_mono_ns"] < end)
    waited &= np.isin(sockets["tid"], list(tids)) & (sockets["flags"] & SocketFlags.ACCEPTED == 0)
    found = []
    for row in (*sockets[came][:1], *_last_of_each(sockets[waited])):
        peer = endpoint(row["remote"], int(row["remote_port"]))
        accepted = int(row["flags"]) & SocketFlags.ACCEPTED
        said = [f"{'came from' if accepted else 'called'} {peer}"]
        said.append(f"message {int(row['messages'])} of the connection")
        if row["srtt_us"]:
            said.append(f"srtt {row['srtt_us'] / 1000:.2f} ms (min {row['min_rtt_us'] / 1000:.2f})")
        mine = sockets[(sockets["socket"] == row["socket"]) & (sockets["to_mono_ns"] <= end)]
        totals = {name: int(mine[name].sum()) for name in ("retransmits", "out_of_order")}
        said += [f"{total} {name.replace('_', ' ')}" for name, total in totals.items() if total]
        if int(row["flags"]) & SocketFlags.ZERO_WINDOW:
            said.append("the peer's receive window is closed")
        if int(row["flags"]) & SocketFlags.RESET:
            said.append("reset by the peer")
        found.append(", ".join(said))
    return found


def _last_of_each(sockets: Table) -> Table:
    """Of each connection the last record, at most four connections."""
    _, last = np.unique(sockets["socket"][::-1], return_index=True)
    found: Table = sockets[::-1][np.sort(last)[:4]]
    return found


def _faults(cycles: Table) -> list[str]:
    minor, major = int(cycles["minor_faults"].sum()), int(cycles["major_faults"].sum())
    if not major and minor < MANY_FAULTS:
        return []
    return [f"page faults: {major} major, {minor} minor (those that do not sleep are in on cpu)"]


def _migrations(cycles: Table) -> list[str]:
    """Changes of CPU between one turn and the next of the same thread."""
    same = cycles["tid"][1:] == cycles["tid"][:-1]
    moved = int((same & (cycles["run_cpu"][1:] != cycles["run_cpu"][:-1])).sum())
    return [f"{moved} migrations between CPUs"] if moved else []


def _clocks(samples: Table, start: int, end: int, cycles: Table) -> list[str]:
    samples = samples[(samples["end_mono_ns"] > start) & (samples["start_mono_ns"] < end)]
    samples = samples[np.isin(samples["cpu"], cycles["run_cpu"]) & (samples["max_khz"] > 0)]
    slow = samples[samples["khz"] < SLOW_CLOCK * samples["max_khz"]]
    if not len(slow):
        return []
    low = slow[np.argmin(slow["khz"] / slow["max_khz"])]
    return [f"CPU {low['cpu']} ran at {low['khz'] / 1e6:.2f} of {low['max_khz'] / 1e6:.2f} GHz"]


def _incidents(incidents: Table, tgid: int, start: int, end: int) -> list[str]:
    found = []
    for row in incidents[(incidents["mono_ns"] >= start) & (incidents["mono_ns"] <= end)]:
        at = f"at +{(int(row['mono_ns']) - start) / 1e6:.1f} ms"
        actor = f"{text(row['actor_comm'])}[{int(row['actor_tgid'])}]"
        target = f"{text(row['target_comm'])}[{int(row['target_tgid'])}]"
        if row["kind"] == IncidentKind.OOM_KILL:
            found.append(f"{at} the kernel killed {target}: out of memory, when {actor} wanted some")
        elif row["target_tgid"] == tgid:
            name = _SIGNALS.get(int(row["signal"]), f"signal {int(row['signal'])}")
            found.append(f"{at} {actor} sent {name} to {target}")
    return found[:8]
