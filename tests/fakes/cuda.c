/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libcuda.so.1 for tests: the driver API's symbols with the real signatures (cuda.h), working on the device of device.h
 * that $FAKE_GPU names. Without it there is no device. Only what the tests and the reference worker call is here.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "device.h"

typedef int CUresult;
typedef int CUdevice;
typedef uint64_t CUdeviceptr;
typedef void *CUhandle; /* context, module, function, stream, event */
typedef struct {
	char bytes[16];
} CUuuid;

enum {
	CUDA_SUCCESS = 0,
	CUDA_ERROR_INVALID_VALUE = 1,
	CUDA_ERROR_OUT_OF_MEMORY = 2,
	CUDA_ERROR_NOT_INITIALIZED = 3,
	CUDA_ERROR_NO_DEVICE = 100,
	CUDA_ERROR_NOT_READY = 600,
};

#define API __attribute__((visibility("default"), noinline))
#define SECOND 1000000000ull
#define ALLOCATIONS 4096

static struct fake_gpu *gpu;
static __thread int current; /* device of the thread's context */

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * SECOND + t.tv_nsec;
}

static uint64_t get(uint64_t *word)
{
	return __atomic_load_n(word, __ATOMIC_SEQ_CST);
}

static struct fake_device *device(void)
{
	return &gpu->devices[current];
}

/* Until then: asleep, as with CU_CTX_SCHED_BLOCKING_SYNC, or spinning. Nobody ever wakes a sleeper: its time comes. */
static void wait_until(uint64_t until)
{
	static uint32_t word;
	uint64_t now;

	while ((now = now_ns()) < until) {
		struct timespec left = {(until - now) / SECOND, (until - now) % SECOND};

		if (get(&device()->sync_sleeps))
			syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &left, 0, 0);
	}
}

/* What a process held is free when it has ended. */
static void bury(struct fake_process *p)
{
	uint64_t pid = get(&p->pid);

	if (pid && kill(pid, 0) && errno == ESRCH) {
		__atomic_store_n(&p->memory_bytes, 0, __ATOMIC_SEQ_CST);
		__atomic_store_n(&p->busy_ns, 0, __ATOMIC_SEQ_CST);
		__atomic_compare_exchange_n(&p->pid, &pid, 0, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
	}
}

static struct fake_process *own(struct fake_device *d)
{
	uint64_t pid = getpid();

	for (int i = 0; i < FAKE_PROCESSES; i++) {
		if (get(&d->processes[i].pid) == pid)
			return &d->processes[i];
	}
	for (int i = 0; i < FAKE_PROCESSES; i++) {
		uint64_t none = 0;

		bury(&d->processes[i]);
		if (__atomic_compare_exchange_n(&d->processes[i].pid, &none, pid, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
			return &d->processes[i];
	}
	fprintf(stderr, "fake libcuda: more than %d processes\n", FAKE_PROCESSES);
	abort();
}

/* ns that work of so many ns at the highest clock takes, begun then. */
static uint64_t stretched(struct fake_device *d, uint64_t ns, uint64_t begin)
{
	uint64_t clock = get(&d->sm_mhz), cold = get(&d->cold_mhz);

	if (cold && begin < get(&d->warm_since_mono_ns) + get(&d->warm_ns) && cold < clock)
		clock = cold;
	return ns * get(&d->sm_max_mhz) / clock;
}

/* Queue work; when it will be done. */
static uint64_t enqueue(uint64_t ns)
{
	struct fake_device *d = device();
	uint64_t free_at = get(&d->free_at_mono_ns), begin, took;

	do {
		uint64_t now = now_ns();

		begin = free_at > now ? free_at : now;
		if (get(&d->cold_mhz) && now > free_at + get(&d->cold_after_ns))
			__atomic_store_n(&d->warm_since_mono_ns, begin, __ATOMIC_SEQ_CST);
		took = stretched(d, ns, begin);
	} while (!__atomic_compare_exchange_n(&d->free_at_mono_ns, &free_at, begin + took, 0, __ATOMIC_SEQ_CST,
					      __ATOMIC_SEQ_CST));
	__atomic_fetch_add(&own(d)->busy_ns, took, __ATOMIC_SEQ_CST);
	return begin + took;
}

static CUresult wait_for_device(void)
{
	wait_until(get(&device()->free_at_mono_ns));
	if (get(&device()->hang_ns))
		wait_until(now_ns() + get(&device()->hang_ns));
	return get(&device()->sync_result);
}

API CUresult cuInit(unsigned flags)
{
	const char *path = getenv("FAKE_GPU");
	int file = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
	void *map;

	if (flags)
		return CUDA_ERROR_INVALID_VALUE;
	if (gpu)
		return CUDA_SUCCESS;
	if (file < 0)
		return CUDA_ERROR_NO_DEVICE;
	map = mmap(0, sizeof(*gpu), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	close(file);
	if (map == MAP_FAILED || ((struct fake_gpu *)map)->magic != FAKE_MAGIC)
		return CUDA_ERROR_NO_DEVICE;
	gpu = map;
	return CUDA_SUCCESS;
}

API CUresult cuDeviceGetCount(int *count)
{
	if (!gpu)
		return CUDA_ERROR_NOT_INITIALIZED;
	*count = gpu->count;
	return CUDA_SUCCESS;
}

API CUresult cuDeviceGet(CUdevice *found, int ordinal)
{
	if (!gpu)
		return CUDA_ERROR_NOT_INITIALIZED;
	if (ordinal < 0 || (uint64_t)ordinal >= gpu->count)
		return CUDA_ERROR_INVALID_VALUE;
	*found = ordinal;
	return CUDA_SUCCESS;
}

/* 00000000-0000-4000-8000-00000000000N */
API CUresult cuDeviceGetUuid(CUuuid *uuid, CUdevice of)
{
	memset(uuid, 0, sizeof(*uuid));
	uuid->bytes[6] = 0x40;
	uuid->bytes[8] = (char)0x80;
	uuid->bytes[15] = of;
	return CUDA_SUCCESS;
}

API CUresult cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice of)
{
	return cuDeviceGetUuid(uuid, of);
}

API CUresult cuDevicePrimaryCtxRetain(CUhandle *context, CUdevice of)
{
	*context = (CUhandle)(intptr_t)(of + 1);
	return CUDA_SUCCESS;
}

API CUresult cuCtxSetCurrent(CUhandle context)
{
	current = (int)(intptr_t)context - 1;
	return CUDA_SUCCESS;
}

API CUresult cuModuleLoadData(CUhandle *module, const void *image)
{
	*module = (CUhandle)image;
	wait_until(now_ns() + get(&device()->load_ns));
	return CUDA_SUCCESS;
}

API CUresult cuModuleUnload(CUhandle module)
{
	(void)module;
	return CUDA_SUCCESS;
}

API CUresult cuModuleGetFunction(CUhandle *function, CUhandle module, const char *name)
{
	(void)module;
	*function = (CUhandle)name;
	return CUDA_SUCCESS;
}

static struct {
	CUdeviceptr at;
	size_t bytes;
} allocations[ALLOCATIONS];

API CUresult cuMemAlloc_v2(CUdeviceptr *at, size_t bytes)
{
	static CUdeviceptr next = 1 << 20;
	struct fake_device *d = device();
	struct fake_process *me = own(d);
	uint64_t used = 0;

	wait_until(now_ns() + get(&d->alloc_ns));
	if (get(&d->alloc_result))
		return get(&d->alloc_result);
	for (int i = 0; i < FAKE_PROCESSES; i++) {
		bury(&d->processes[i]);
		used += get(&d->processes[i].memory_bytes);
	}
	if (used + bytes > get(&d->memory_total_bytes))
		return CUDA_ERROR_OUT_OF_MEMORY;
	*at = __atomic_fetch_add(&next, bytes + 512, __ATOMIC_SEQ_CST);
	for (int i = 0; i < ALLOCATIONS; i++) {
		CUdeviceptr expected = 0;

		if (__atomic_compare_exchange_n(&allocations[i].at, &expected, *at, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
			allocations[i].bytes = bytes;
			__atomic_fetch_add(&me->memory_bytes, bytes, __ATOMIC_SEQ_CST);
			return CUDA_SUCCESS;
		}
	}
	return CUDA_ERROR_OUT_OF_MEMORY;
}

API CUresult cuMemFree_v2(CUdeviceptr at)
{
	CUresult result = wait_for_device();

	wait_until(now_ns() + get(&device()->free_ns));
	for (int i = 0; i < ALLOCATIONS; i++) {
		if (get(&allocations[i].at) == at) {
			__atomic_fetch_sub(&own(device())->memory_bytes, allocations[i].bytes, __ATOMIC_SEQ_CST);
			__atomic_store_n(&allocations[i].at, 0, __ATOMIC_SEQ_CST);
			return result;
		}
	}
	return CUDA_ERROR_INVALID_VALUE;
}

/* What was launched before comes first. */
static CUresult copy(size_t bytes)
{
	CUresult result = wait_for_device();

	wait_until(now_ns() + bytes * SECOND / get(&device()->copy_bytes_per_s));
	return result;
}

API CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t bytes)
{
	(void)to;
	(void)from;
	return copy(bytes);
}

API CUresult cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t bytes)
{
	(void)to;
	(void)from;
	return copy(bytes);
}

API CUresult cuLaunchKernel(CUhandle function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
			    unsigned block_y, unsigned block_z, unsigned shared_bytes, CUhandle stream, void **parameters,
			    void **extra)
{
	(void)function, (void)grid_x, (void)grid_y, (void)grid_z, (void)block_x, (void)block_y, (void)block_z;
	(void)shared_bytes, (void)stream, (void)parameters, (void)extra;
	enqueue(get(&device()->kernel_ns));
	__atomic_fetch_add(&device()->launches, 1, __ATOMIC_SEQ_CST);
	return CUDA_SUCCESS;
}

API CUresult cuGraphLaunch(CUhandle graph, CUhandle stream)
{
	(void)graph, (void)stream;
	enqueue(get(&device()->kernel_ns));
	__atomic_fetch_add(&device()->launches, 1, __ATOMIC_SEQ_CST);
	return CUDA_SUCCESS;
}

API CUresult cuStreamSynchronize(CUhandle stream)
{
	(void)stream;
	return wait_for_device();
}

API CUresult cuCtxSynchronize(void)
{
	return wait_for_device();
}

API CUresult cuEventSynchronize(CUhandle event)
{
	(void)event;
	return wait_for_device();
}
