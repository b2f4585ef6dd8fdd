// SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0)
/*
 * Time that interrupts and softirqs took from whoever was on the CPU: one total per CPU, read at switch-in and
 * switch-out. An interrupt inside a softirq counts once. The marks also tell a wake-up from an interrupt from one by
 * the task that happened to be running. Not seen: IPIs, which take microseconds.
 */
#include "maps.bpf.h"

static __always_inline struct cpu_state *this_cpu(void)
{
	u32 cpu = bpf_get_smp_processor_id();

	return bpf_map_lookup_elem(&cpus, &cpu);
}

static __always_inline int enter_irq(void)
{
	struct cpu_state *c = this_cpu();

	if (c)
		c->irq_enter_mono_ns = bpf_ktime_get_ns();
	return 0;
}

static __always_inline int exit_irq(void)
{
	struct cpu_state *c = this_cpu();

	if (!c || !c->irq_enter_mono_ns)
		return 0;
	if (!c->softirq_enter_mono_ns)
		c->irq_ns += bpf_ktime_get_ns() - c->irq_enter_mono_ns;
	c->irq_enter_mono_ns = 0;
	return 0;
}

TRACEPOINT(irq_handler_entry, on_irq_entry)
{
	return enter_irq();
}

TRACEPOINT(irq_handler_exit, on_irq_exit)
{
	return exit_irq();
}

/* x86: the local timer has a vector and tracepoints of its own; elsewhere it is an ordinary interrupt. */
TRACEPOINT(local_timer_entry, on_timer_entry)
{
	return enter_irq();
}

TRACEPOINT(local_timer_exit, on_timer_exit)
{
	return exit_irq();
}

TRACEPOINT(softirq_entry, on_softirq_entry, unsigned int vector)
{
	struct cpu_state *c = this_cpu();

	if (c) {
		c->softirq_enter_mono_ns = bpf_ktime_get_ns();
		c->softirq_vector = vector;
	}
	return 0;
}

TRACEPOINT(softirq_exit, on_softirq_exit)
{
	struct cpu_state *c = this_cpu();
	u64 took;

	if (!c || !c->softirq_enter_mono_ns)
		return 0;
	took = bpf_ktime_get_ns() - c->softirq_enter_mono_ns;
	c->irq_ns += took;
	if (c->softirq_vector == NET_TX_SOFTIRQ || c->softirq_vector == NET_RX_SOFTIRQ)
		c->net_ns += took;
	c->softirq_enter_mono_ns = 0;
	return 0;
}
