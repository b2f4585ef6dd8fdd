/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A GPU that does not exist: one file, mapped by our libcuda.so.1, which works on it, by our libnvidia-ml.so.1, which
 * reports it, and by the tests (tests/fakes/device.py), which set it. So what the agent samples and what the worker
 * suffers are the same device.
 *
 * Work is one queue a device, in time: a launch begins when all that was launched before is done, and takes kernel_ns
 * at the highest clock, longer at a lower one. Who launched it is booked by pid. Times are CLOCK_MONOTONIC ns.
 * Every pointer-free; every 8-byte word is written by atomic operations, so no lock is held by who dies.
 */
#ifndef FAKE_DEVICE_H
#define FAKE_DEVICE_H

#include <stdint.h>

#define FAKE_MAGIC 0x7550476b61660002ull
#define FAKE_DEVICES 4
#define FAKE_PROCESSES 16

struct fake_process {
	uint64_t pid; /* 0: a free place */
	uint64_t busy_ns;      /* of the device's time, in all, done or queued */
	uint64_t memory_bytes; /* allocated */
};

struct fake_device {
	uint64_t free_at_mono_ns; /* all that was launched is done */
	uint64_t memory_total_bytes;
	/* What the tests set. */
	uint64_t sm_mhz;	 /* now, or what it warms up to */
	uint64_t sm_max_mhz;
	uint64_t cold_mhz;	 /* after cold_after_ns without work; 0: it never gets cold */
	uint64_t cold_after_ns;
	uint64_t warm_ns;	 /* from the first launch after that until it has sm_mhz again, in one step */
	uint64_t reasons;	 /* nvmlClocksEventReasons while there is work */
	uint64_t kernel_ns;	 /* of one launch at sm_max_mhz */
	uint64_t copy_bytes_per_s;
	uint64_t alloc_ns, free_ns, load_ns; /* of one such call */
	uint64_t alloc_result, sync_result;  /* CUresult of such calls */
	uint64_t hang_ns;	 /* every call that waits for the device takes so much longer */
	uint64_t sync_sleeps;	 /* 1: such a call sleeps until the device is done; 0: it spins */
	/* What the device keeps. */
	uint64_t warm_since_mono_ns; /* of the first launch after it was cold */
	uint64_t launches;
	struct fake_process processes[FAKE_PROCESSES];
};

struct fake_gpu {
	uint64_t magic;
	uint64_t count; /* of devices */
	struct fake_device devices[FAKE_DEVICES];
};

#endif
