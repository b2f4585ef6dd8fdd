/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* Identity of a thread: its cgroup and its ids in its own pid namespace. */
#ifndef TAILSPAN_THREAD_H
#define TAILSPAN_THREAD_H

#include "maps.bpf.h"

/* Set by the loader where the cpu controller is mounted as cgroup v1: then a cgroup id means that hierarchy. */
KNOB(bool, cpu_controller_v1, 0);

/* Not sched_task_group: that may be an autogroup, which is no cgroup. */
static __always_inline u64 cpu_cgroup_id(struct task_struct *task)
{
	struct css_set *set = READ(task, cgroups);
	struct cgroup_subsys_state *css;
	struct cgroup *group;
	struct kernfs_node *node;

	if (cpu_controller_v1) {
		css = READ_AT(struct cgroup_subsys_state *, set,
			      bpf_core_field_offset(struct css_set, subsys) +
				      bpf_core_enum_value(enum cgroup_subsys_id, cpu_cgrp_id) * sizeof(css));
		group = READ(css, cgroup);
	} else {
		group = READ(set, dfl_cgrp);
	}
	node = READ(group, kn);
	return READ(node, id);
}

/* The task's number in its innermost pid namespace. */
static __always_inline u32 namespace_id(struct task_struct *task)
{
	struct pid *pid = BPF_CORE_READ(task, thread_pid);
	unsigned int level = BPF_CORE_READ(pid, level);
	struct upid upid = {};

	if (!pid || level > 32) /* MAX_PID_NS_LEVEL */
		return 0;
	bpf_probe_read_kernel(&upid, sizeof(upid),
			      (void *)pid + bpf_core_field_offset(struct pid, numbers) + level * sizeof(upid));
	return upid.nr;
}

#endif
