// SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0)
/* One object: the subsystems are one translation unit, so that maps and knobs need no linker. */
#include "sched.bpf.c"
#include "lifecycle.bpf.c"
#include "irq.bpf.c"
#include "stall.bpf.c"
#include "block.bpf.c"
#include "tcp.bpf.c"
#include "owner.bpf.c"
#include "incident.bpf.c"
#include "syscall.bpf.c"
#include "cuda.bpf.c"

#ifndef TAILSPAN_BCC /* which says so itself */
char LICENSE[] SEC("license") = "GPL";
#endif
