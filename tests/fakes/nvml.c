/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libnvidia-ml.so.1 for tests: NVML's symbols with the real ABI (nvml.h), of the devices of device.h that $FAKE_GPU names.
 * Without it the driver is not loaded. $FAKE_NVML names a script of what shall be otherwise, read again when it changes.
 * Its lines; GPU is a number or *, MS are since the script was read:
 *
 *	error WHAT CODE [GPU [FIRST [COUNT]]]	function WHAT, or field:ID, or any of a GPU (*), answers CODE (NOT_SUPPORTED);
 *						from its FIRST call on, for COUNT of them
 *	value NAME NUMBER [GPU [MS]]		a gauge (names: below, where value() is called) or field:ID, from then on
 *	rate field:ID NUMBER [GPU]		a counter grows by so much a second, since the driver was loaded
 *	delay WHAT MS				function WHAT (or *) takes so long
 *	lost GPU [MS]				it has fallen off the bus: NVML_ERROR_GPU_IS_LOST
 *	xid GPU CODE [MS]			one event; heard by who waits for it, then or later
 *	dbe GPU [MS]				the event of a memory error that could not be corrected
 *	mig GPU COUNT BYTES			MIG mode, so many instances of so much memory
 *	reload N				the driver was loaded again, once for each other N: counters begin at 0
 *
 * A symbol cannot vanish while a program runs: a missing function is one that answers FUNCTION_NOT_FOUND, which is what
 * pynvml raises for a missing symbol too.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "device.h"

#define API __attribute__((visibility("default"), noinline))
#define MS 1000000ull
#define SECOND 1000000000ull
#define INSTANCES 7
#define RULES 512
#define RING 512
#define ALL (-1)
#define XID_EVENT 8ull
#define DBE_EVENT 2ull
#define NOT_AVAILABLE (~0ull)

enum {
	SUCCESS = 0,
	UNINITIALIZED = 1,
	INVALID_ARGUMENT = 2,
	NOT_SUPPORTED = 3,
	NO_PERMISSION = 4,
	NOT_FOUND = 6,
	INSUFFICIENT_SIZE = 7,
	DRIVER_NOT_LOADED = 9,
	TIMEOUT = 10,
	FUNCTION_NOT_FOUND = 13,
	GPU_IS_LOST = 15,
	LIB_RM_VERSION_MISMATCH = 18,
	ARGUMENT_VERSION_MISMATCH = 25,
	UNKNOWN = 999,
};

static const struct {
	const char *name;
	int code;
} codes[] = {
	{"UNINITIALIZED", UNINITIALIZED},
	{"INVALID_ARGUMENT", INVALID_ARGUMENT},
	{"NOT_SUPPORTED", NOT_SUPPORTED},
	{"NO_PERMISSION", NO_PERMISSION},
	{"NOT_FOUND", NOT_FOUND},
	{"DRIVER_NOT_LOADED", DRIVER_NOT_LOADED},
	{"TIMEOUT", TIMEOUT},
	{"FUNCTION_NOT_FOUND", FUNCTION_NOT_FOUND},
	{"GPU_IS_LOST", GPU_IS_LOST},
	{"LIB_RM_VERSION_MISMATCH", LIB_RM_VERSION_MISMATCH},
	{"UNKNOWN", UNKNOWN},
};

/* What an nvmlDevice_t points to. */
struct handle {
	int gpu, instance; /* ALL: the GPU itself */
};

struct rule {
	char verb[8], what[64];
	int gpu, code;
	double number;
	uint64_t ms, first, count, calls;
	bool fired;
};

struct sample {
	uint64_t unix_us;
	unsigned gpu, pid, value;
};

struct ring {
	struct sample samples[RING];
	unsigned long long written;
};

struct field {
	uint32_t id, scope;
	int64_t timestamp, latency_us;
	uint32_t type;
	int result;
	union {
		double d;
		uint32_t u;
		unsigned long long ull;
	} value;
};

/* What is kept of a device between two looks at it, to have shares of time. */
struct history {
	uint64_t looked_ns, done_ns, window_ns, window_done_ns, booked_ns[FAKE_PROCESSES];
	double held_ns[16], energy_mj, share[FAKE_PROCESSES];
	unsigned busy_percent;
};

struct event_set {
	unsigned long long types[FAKE_DEVICES];
};

struct gpm_sample {
	uint64_t at_ns, done_ns;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct fake_gpu *gpu;
static struct handle handles[FAKE_DEVICES][1 + INSTANCES];
static struct history past[FAKE_DEVICES];
static struct ring clocks, uses;
static struct rule rules[RULES];
static int rule_count, users, loaded, looked_up;
static uint64_t read_ns, loaded_ns;
static struct timespec script_time;
static off_t script_bytes = -1;
static pthread_t ticker;

static uint64_t clock_ns(clockid_t id)
{
	struct timespec t;

	clock_gettime(id, &t);
	return t.tv_sec * SECOND + t.tv_nsec;
}

static uint64_t now_ns(void)
{
	return clock_ns(CLOCK_MONOTONIC);
}

static uint64_t get(uint64_t *word)
{
	return __atomic_load_n(word, __ATOMIC_SEQ_CST);
}

/* ---- the script ---- */

static int gpu_of(const char *word)
{
	return *word && *word != '*' ? atoi(word) : ALL;
}

static int code_of(const char *word)
{
	for (size_t i = 0; i < sizeof(codes) / sizeof(*codes); i++) {
		if (!strcmp(codes[i].name, word))
			return codes[i].code;
	}
	fprintf(stderr, "fake libnvidia-ml: no such code: %s\n", word);
	abort();
}

static bool parse(const char *line, struct rule *r)
{
	char word[5][64] = {"", "", "", "", ""};
	int words;

	memset(r, 0, sizeof(*r));
	words = sscanf(line, "%7s %63s %63s %63s %63s %63s", r->verb, word[0], word[1], word[2], word[3], word[4]);
	if (words < 2 || r->verb[0] == '#')
		return false;
	r->gpu = ALL;
	if (!strcmp(r->verb, "error")) {
		strcpy(r->what, word[0]);
		r->code = code_of(word[1]);
		r->gpu = gpu_of(word[2]);
		r->first = *word[3] ? strtoull(word[3], 0, 0) : 1;
		r->count = *word[4] ? strtoull(word[4], 0, 0) : ~0ull;
	} else if (!strcmp(r->verb, "value") || !strcmp(r->verb, "rate")) {
		strcpy(r->what, word[0]);
		r->number = strtod(word[1], 0);
		r->gpu = gpu_of(word[2]);
		r->ms = strtoull(word[3], 0, 0);
	} else if (!strcmp(r->verb, "delay")) {
		strcpy(r->what, word[0]);
		r->ms = strtoull(word[1], 0, 0);
	} else if (!strcmp(r->verb, "lost") || !strcmp(r->verb, "dbe")) {
		r->gpu = gpu_of(word[0]);
		r->ms = strtoull(word[1], 0, 0);
	} else if (!strcmp(r->verb, "xid")) {
		r->gpu = gpu_of(word[0]);
		r->number = strtod(word[1], 0);
		r->ms = strtoull(word[2], 0, 0);
	} else if (!strcmp(r->verb, "mig")) {
		r->gpu = gpu_of(word[0]);
		r->count = strtoull(word[1], 0, 0);
		r->number = strtod(word[2], 0);
	} else if (!strcmp(r->verb, "reload")) {
		r->number = strtod(word[0], 0);
	} else {
		fprintf(stderr, "fake libnvidia-ml: no such directive: %s\n", r->verb);
		abort();
	}
	return true;
}

static void reload(int number)
{
	if (number == loaded)
		return;
	loaded = number;
	users = 0;
	loaded_ns = now_ns();
	memset(past, 0, sizeof(past));
}

static void read_script(void)
{
	const char *path = getenv("FAKE_NVML");
	struct stat now = {0};
	char line[256];
	FILE *file;

	if (!path || stat(path, &now))
		now.st_size = 0;
	if (now.st_size == script_bytes && !memcmp(&now.st_mtim, &script_time, sizeof(script_time)))
		return;
	script_bytes = now.st_size;
	script_time = now.st_mtim;
	read_ns = now_ns();
	rule_count = 0;
	file = path ? fopen(path, "re") : 0;
	while (file && rule_count < RULES && fgets(line, sizeof(line), file)) {
		if (parse(line, &rules[rule_count])) {
			if (!strcmp(rules[rule_count].verb, "reload"))
				reload(rules[rule_count].number);
			rule_count++;
		}
	}
	if (file)
		fclose(file);
}

static bool is(const struct rule *r, const char *verb, int of)
{
	return !strcmp(r->verb, verb) && (r->gpu == ALL || r->gpu == of);
}

static uint64_t script_ms(void)
{
	return (now_ns() - read_ns) / MS;
}

static double value(const char *name, int of, double otherwise)
{
	uint64_t at = script_ms(), since = 0;

	for (struct rule *r = rules; r < rules + rule_count; r++) {
		if (is(r, "value", of) && !strcmp(r->what, name) && r->ms <= at && r->ms >= since) {
			since = r->ms;
			otherwise = r->number;
		}
	}
	return otherwise;
}

static struct rule *find(const char *verb, const char *what, int of)
{
	for (struct rule *r = rules; r < rules + rule_count; r++) {
		if (is(r, verb, of) && (!what || !strcmp(r->what, what)))
			return r;
	}
	return 0;
}

static int error_of(const char *what, int of)
{
	int code = SUCCESS;

	for (struct rule *r = rules; r < rules + rule_count; r++) {
		bool any = !strcmp(r->what, "*") && of != ALL && strncmp(what, "field:", 6);

		if (!is(r, "error", of) || (strcmp(r->what, what) && !any))
			continue;
		r->calls++;
		if (r->calls >= r->first && r->calls - r->first < r->count)
			code = r->code;
	}
	return code;
}

/* ---- the devices ---- */

static uint64_t done_ns(int of, uint64_t now)
{
	struct fake_device *d = &gpu->devices[of];
	uint64_t booked = 0, free_at = get(&d->free_at_mono_ns);

	for (int i = 0; i < FAKE_PROCESSES; i++)
		booked += get(&d->processes[i].busy_ns);
	if (free_at > now)
		return booked > free_at - now ? booked - (free_at - now) : 0;
	return booked;
}

static unsigned sm_mhz(int of, uint64_t now)
{
	struct fake_device *d = &gpu->devices[of];
	uint64_t cold = get(&d->cold_mhz), clock = get(&d->sm_mhz);

	if (cold && (now > get(&d->free_at_mono_ns) + get(&d->cold_after_ns) ||
		     now < get(&d->warm_since_mono_ns) + get(&d->warm_ns)))
		clock = cold;
	return value("sm_mhz", of, clock);
}

/* Idle is what the driver calls a device that had nothing to do for a while. */
static uint64_t reasons(int of, uint64_t now)
{
	struct fake_device *d = &gpu->devices[of];
	bool works = now < get(&d->free_at_mono_ns) + 20 * MS;

	return value("reasons", of, works ? get(&d->reasons) : 1);
}

static double power_mw(int of)
{
	return value("power_mw", of, 80000 + 6000.0 * past[of].busy_percent);
}

static bool alive(uint64_t pid)
{
	return pid && !(kill(pid, 0) && errno == ESRCH);
}

static void put(struct ring *ring, struct sample sample)
{
	ring->samples[ring->written++ % RING] = sample;
}

/* Shares of time since the last such window; the driver's is as long. */
static void window(int of, uint64_t now, uint64_t unix_us)
{
	struct fake_device *d = &gpu->devices[of];
	struct history *h = &past[of];
	double took = now - h->window_ns, done, booked[FAKE_PROCESSES], all = 0;
	uint64_t in_all = done_ns(of, now);

	if (took < 100 * MS)
		return;
	done = in_all > h->window_done_ns ? in_all - h->window_done_ns : 0;
	done = done < took ? done : took;
	h->busy_percent = h->window_ns ? 100 * done / took : 0;
	for (int i = 0; i < FAKE_PROCESSES; i++) {
		uint64_t ns = get(&d->processes[i].busy_ns);

		booked[i] = ns > h->booked_ns[i] ? ns - h->booked_ns[i] : 0;
		h->booked_ns[i] = ns;
		all += booked[i];
	}
	for (int i = 0; i < FAKE_PROCESSES; i++) {
		unsigned percent;

		if (all)
			h->share[i] = booked[i] / all;
		percent = h->window_ns ? 100 * h->share[i] * done / took + 0.5 : 0;
		if (percent && alive(get(&d->processes[i].pid)))
			put(&uses, (struct sample){unix_us, of, get(&d->processes[i].pid), percent});
	}
	h->window_ns = now;
	h->window_done_ns = in_all;
}

/* How long clocks were held down is counted by the work done meanwhile, idleness by the rest. */
static const struct {
	uint32_t field;
	uint64_t reasons;
} held[] = {
	{74, 0x4},
	{75, 0x60},
	{76, 0x10},
	{77, 0x200},
	{78, 0x1},
	{79, 0x400},
	{269, 0x20},
	{270, 0x40},
	{271, 0x80},
};

#define HELD (sizeof(held) / sizeof(*held))

static void tick(int of)
{
	struct history *h = &past[of];
	uint64_t now = now_ns(), unix_us = clock_ns(CLOCK_REALTIME) / 1000, done = done_ns(of, now), why = reasons(of, now);
	double took = h->looked_ns ? now - h->looked_ns : 0;

	if (done < h->done_ns) /* who had booked it has ended */
		h->done_ns = done;
	for (size_t i = 0; i < HELD; i++) {
		if (why & held[i].reasons)
			h->held_ns[i] += why == 1 || h->looked_ns == 0 ? took : (double)(done - h->done_ns);
	}
	h->energy_mj += power_mw(of) * took / SECOND;
	h->looked_ns = now;
	h->done_ns = done;
	window(of, now, unix_us);
	put(&clocks, (struct sample){unix_us, of, 0, sm_mhz(of, now)});
}

static void *tick_on(void *nothing)
{
	(void)nothing;
	for (;;) {
		struct timespec pause = {0, 20 * MS};

		pthread_mutex_lock(&lock);
		for (uint64_t i = 0; users && i < gpu->count; i++)
			tick(i);
		pthread_mutex_unlock(&lock);
		nanosleep(&pause, 0);
	}
	return 0;
}

static bool load(void)
{
	const char *path = getenv("FAKE_GPU");
	int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	struct fake_gpu *map;

	if (file < 0)
		return false;
	map = mmap(0, sizeof(*gpu), PROT_READ, MAP_SHARED, file, 0);
	close(file);
	if (map == MAP_FAILED)
		return false;
	if (map->magic != FAKE_MAGIC) {
		munmap(map, sizeof(*gpu));
		return false;
	}
	if (gpu)
		munmap(gpu, sizeof(*gpu));
	gpu = map;
	memset(past, 0, sizeof(past));
	if (!loaded_ns)
		loaded_ns = now_ns();
	for (int i = 0; i < FAKE_DEVICES; i++) {
		for (int k = 0; k <= INSTANCES; k++)
			handles[i][k] = (struct handle){i, k - 1};
	}
	return true;
}

/* ---- every call ---- */

static uint64_t delay_ms(const char *function)
{
	struct rule *r = find("delay", function, ALL);

	r = r ? r : find("delay", "*", ALL);
	return r ? r->ms : 0;
}

/* Gives way when the script changes: a test ends a hang so. */
static void sleep_for(const char *function)
{
	uint64_t until = now_ns() + delay_ms(function) * MS;

	while (now_ns() < until && delay_ms(function)) {
		uint64_t left = until - now_ns();
		struct timespec pause = {0, left < 10 * MS ? left : 10 * MS};

		pthread_mutex_unlock(&lock);
		nanosleep(&pause, 0);
		pthread_mutex_lock(&lock);
		read_script();
	}
}

static struct rule *mig(const struct handle *h)
{
	return find("mig", 0, h->gpu);
}

/* What the function says before it looks; SUCCESS: the lock is held. */
static int enter(const char *function, const struct handle *h)
{
	struct rule *lost;
	int code;

	pthread_mutex_lock(&lock);
	read_script();
	sleep_for(function);
	if (!users)
		code = UNINITIALIZED;
	else if (h && (h < &handles[0][0] || h >= &handles[FAKE_DEVICES][0] || (uint64_t)h->gpu >= gpu->count))
		code = INVALID_ARGUMENT;
	else if (h && (lost = find("lost", 0, h->gpu)) && lost->ms <= script_ms())
		code = GPU_IS_LOST;
	else if (h && h->instance != ALL && !mig(h)) /* was destroyed */
		code = INVALID_ARGUMENT;
	else
		code = error_of(function, h ? h->gpu : ALL);
	if (code)
		pthread_mutex_unlock(&lock);
	return code;
}

static int leave(int code)
{
	pthread_mutex_unlock(&lock);
	return code;
}

#define ENTER(handle)                                                                                                          \
	do {                                                                                                                   \
		int said = enter(__func__, handle);                                                                            \
		if (said)                                                                                                      \
			return said;                                                                                           \
	} while (0)

/* Nearly everything is the whole card's. */
#define ENTER_CARD(handle)                                                                                                     \
	do {                                                                                                                   \
		ENTER(handle);                                                                                                 \
		if ((handle)->instance != ALL)                                                                                 \
			return leave(NOT_SUPPORTED);                                                                           \
	} while (0)

#define GAUGE(function, name, otherwise)                                                                                       \
	API int function(struct handle *h, unsigned *out)                                                                      \
	{                                                                                                                      \
		ENTER_CARD(h);                                                                                                 \
		*out = value(name, h->gpu, otherwise);                                                                         \
		return leave(SUCCESS);                                                                                         \
	}

/* ---- the library ---- */

API int nvmlInitWithFlags(unsigned flags)
{
	int code;

	(void)flags;
	pthread_mutex_lock(&lock);
	read_script();
	sleep_for(__func__);
	code = error_of(__func__, ALL);
	if (!code && !users && !load())
		code = DRIVER_NOT_LOADED;
	if (!code) {
		users++;
		if (!looked_up++)
			pthread_create(&ticker, 0, tick_on, 0);
	}
	return leave(code);
}

API int nvmlShutdown(void)
{
	ENTER(0);
	users--;
	return leave(SUCCESS);
}

API const char *nvmlErrorString(int code)
{
	for (size_t i = 0; i < sizeof(codes) / sizeof(*codes); i++) {
		if (codes[i].code == code)
			return codes[i].name;
	}
	return "Unknown Error";
}

static int text(char *out, unsigned room, const char *said)
{
	return leave(snprintf(out, room, "%s", said) < (int)room ? SUCCESS : INSUFFICIENT_SIZE);
}

API int nvmlSystemGetDriverVersion(char *out, unsigned room)
{
	ENTER(0);
	return text(out, room, "580.95.05");
}

API int nvmlDeviceGetCount_v2(unsigned *count)
{
	ENTER(0);
	*count = value("count", ALL, gpu->count);
	return leave(SUCCESS);
}

API int nvmlDeviceGetHandleByIndex_v2(unsigned index, struct handle **out)
{
	struct handle *h = index < FAKE_DEVICES ? &handles[index][0] : 0;

	if (!h)
		return INVALID_ARGUMENT;
	ENTER(h);
	*out = h;
	return leave(SUCCESS);
}

API int nvmlDeviceGetUUID(struct handle *h, char *out, unsigned room)
{
	char uuid[64];

	ENTER(h);
	if (h->instance == ALL) /* as of libcuda.so.1 */
		snprintf(uuid, sizeof(uuid), "GPU-00000000-0000-4000-8000-%012x", h->gpu);
	else
		snprintf(uuid, sizeof(uuid), "MIG-00000000-0000-4000-8%03x-%012x", h->instance + 1, h->gpu);
	return text(out, room, uuid);
}

API int nvmlDeviceGetName(struct handle *h, char *out, unsigned room)
{
	ENTER(h);
	return text(out, room, h->instance == ALL ? "NVIDIA H100 80GB HBM3" : "NVIDIA H100 80GB HBM3 MIG 1g.10gb");
}

API int nvmlDeviceGetIndex(struct handle *h, unsigned *out)
{
	ENTER(h);
	*out = h->instance == ALL ? h->gpu : h->instance;
	return leave(SUCCESS);
}

struct pci {
	char legacy[16];
	unsigned domain, bus, device, id, subsystem;
	char bus_id[32];
};

API int nvmlDeviceGetPciInfo_v3(struct handle *h, struct pci *out)
{
	ENTER_CARD(h);
	memset(out, 0, sizeof(*out));
	out->bus = 0x10 + h->gpu;
	out->id = 0x233010de;
	snprintf(out->legacy, sizeof(out->legacy), "0000:%02X:00.0", out->bus);
	snprintf(out->bus_id, sizeof(out->bus_id), "00000000:%02X:00.0", out->bus);
	return leave(SUCCESS);
}

/* ---- gauges ---- */

API int nvmlDeviceGetClockInfo(struct handle *h, unsigned clock, unsigned *mhz)
{
	ENTER_CARD(h);
	*mhz = clock == 2 ? value("memory_mhz", h->gpu, 2619) : sm_mhz(h->gpu, now_ns());
	return leave(SUCCESS);
}

API int nvmlDeviceGetMaxClockInfo(struct handle *h, unsigned clock, unsigned *mhz)
{
	ENTER_CARD(h);
	*mhz = clock == 2 ? value("memory_max_mhz", h->gpu, 2619) : get(&gpu->devices[h->gpu].sm_max_mhz);
	return leave(SUCCESS);
}

static int say_reasons(const char *function, struct handle *h, unsigned long long *out)
{
	int code = enter(function, h);

	if (code)
		return code;
	if (h->instance != ALL)
		return leave(NOT_SUPPORTED);
	*out = reasons(h->gpu, now_ns());
	return leave(SUCCESS);
}

API int nvmlDeviceGetCurrentClocksEventReasons(struct handle *h, unsigned long long *out)
{
	return say_reasons(__func__, h, out);
}

API int nvmlDeviceGetCurrentClocksThrottleReasons(struct handle *h, unsigned long long *out)
{
	return say_reasons(__func__, h, out);
}

API int nvmlDeviceGetUtilizationRates(struct handle *h, unsigned out[2])
{
	ENTER_CARD(h);
	if (mig(h))
		return leave(NOT_SUPPORTED);
	out[0] = value("utilization", h->gpu, past[h->gpu].busy_percent);
	out[1] = value("memory_utilization", h->gpu, past[h->gpu].busy_percent / 2);
	return leave(SUCCESS);
}

static int coder(const char *function, struct handle *h, const char *name, unsigned *out, unsigned *period_us)
{
	int code = enter(function, h);

	if (code)
		return code;
	if (h->instance != ALL || mig(h))
		return leave(NOT_SUPPORTED);
	*out = value(name, h->gpu, 0);
	*period_us = 167000;
	return leave(SUCCESS);
}

API int nvmlDeviceGetEncoderUtilization(struct handle *h, unsigned *out, unsigned *period_us)
{
	return coder(__func__, h, "encoder_utilization", out, period_us);
}

API int nvmlDeviceGetDecoderUtilization(struct handle *h, unsigned *out, unsigned *period_us)
{
	return coder(__func__, h, "decoder_utilization", out, period_us);
}

static bool belongs(const struct handle *h, int place)
{
	struct rule *r = mig(h);

	return h->instance == ALL || (r && place % (int)r->count == h->instance);
}

struct memory {
	unsigned version;
	unsigned long long total, reserved, free, used;
};

API int nvmlDeviceGetMemoryInfo_v2(struct handle *h, struct memory *out)
{
	struct fake_device *d;

	ENTER(h);
	if (out->version != (sizeof(*out) | 2 << 24))
		return leave(ARGUMENT_VERSION_MISMATCH);
	d = &gpu->devices[h->gpu];
	out->total = h->instance == ALL ? get(&d->memory_total_bytes) : mig(h)->number;
	out->reserved = value("memory_reserved", h->gpu, 512 << 20);
	out->used = 0;
	for (int i = 0; i < FAKE_PROCESSES; i++) {
		if (alive(get(&d->processes[i].pid)) && belongs(h, i))
			out->used += get(&d->processes[i].memory_bytes);
	}
	out->used = value("memory_used", h->gpu, out->used);
	out->free = out->used + out->reserved < out->total ? out->total - out->used - out->reserved : 0;
	return leave(SUCCESS);
}

GAUGE(nvmlDeviceGetPowerUsage, "power_mw", power_mw(h->gpu))
GAUGE(nvmlDeviceGetEnforcedPowerLimit, "power_limit_mw", 700000)
GAUGE(nvmlDeviceGetPerformanceState, "performance_state", 0)
GAUGE(nvmlDeviceGetCurrPcieLinkGeneration, "pcie_gen", 5)
GAUGE(nvmlDeviceGetMaxPcieLinkGeneration, "pcie_gen_max", 5)
GAUGE(nvmlDeviceGetCurrPcieLinkWidth, "pcie_width", 16)
GAUGE(nvmlDeviceGetMaxPcieLinkWidth, "pcie_width_max", 16)
GAUGE(nvmlDeviceGetPcieReplayCounter, "field:94", 0)

API int nvmlDeviceGetTemperature(struct handle *h, unsigned sensor, unsigned *out)
{
	ENTER_CARD(h);
	*out = value("temperature_c", h->gpu, 45);
	return leave(sensor ? INVALID_ARGUMENT : SUCCESS);
}

struct temperature {
	unsigned version, sensor;
	int celsius;
};

API int nvmlDeviceGetTemperatureV(struct handle *h, struct temperature *out)
{
	ENTER_CARD(h);
	if (out->version != (sizeof(*out) | 1 << 24))
		return leave(ARGUMENT_VERSION_MISMATCH);
	out->celsius = value("temperature_c", h->gpu, 45);
	return leave(SUCCESS);
}

API int nvmlDeviceGetTotalEccErrors(struct handle *h, unsigned type, unsigned counter, unsigned long long *out)
{
	ENTER_CARD(h);
	(void)counter;
	*out = value(type ? "ecc_uncorrected" : "ecc_corrected", h->gpu, 0);
	return leave(SUCCESS);
}

API int nvmlDeviceGetRemappedRows(struct handle *h, unsigned *corrected, unsigned *uncorrected, unsigned *pending,
				  unsigned *failed)
{
	ENTER_CARD(h);
	*corrected = value("remapped_corrected", h->gpu, 0);
	*uncorrected = value("remapped_uncorrected", h->gpu, 0);
	*pending = value("remapped_pending", h->gpu, 0);
	*failed = value("remapped_failed", h->gpu, 0);
	return leave(SUCCESS);
}

/* ---- fields and samples ---- */

static void answer(int of, struct field *f)
{
	struct history *past_of = &past[of];
	struct rule *rate;
	char name[32];

	snprintf(name, sizeof(name), "field:%u", f->id);
	f->timestamp = clock_ns(CLOCK_REALTIME) / 1000;
	f->latency_us = 0;
	f->type = 3; /* unsigned long long */
	f->value.ull = 0;
	f->result = error_of(name, of);
	if (f->result)
		return;
	rate = find("rate", name, of);
	if (rate) {
		f->value.ull = rate->number * (now_ns() - loaded_ns) / SECOND;
		return;
	}
	for (size_t i = 0; i < HELD; i++) {
		if (held[i].field == f->id) {
			f->value.ull = value(name, of, past_of->held_ns[i]);
			return;
		}
	}
	switch (f->id) {
	case 82: /* temperature of the memory */
		f->type = 1;
		f->value.u = value(name, of, 50);
		break;
	case 83: /* energy, mJ */
		f->value.ull = value(name, of, past_of->energy_mj);
		break;
	case 94: /* PCIe replays */
		f->type = 1;
		f->value.u = value(name, of, 0);
		break;
	case 185: /* power, on average and now */
	case 186:
		f->type = 1;
		f->value.u = value(name, of, power_mw(of));
		break;
	case 38: /* NVLink errors and bytes, PCIe bytes */
	case 45:
	case 52:
	case 59:
	case 138:
	case 139:
	case 197:
	case 198:
		f->value.ull = value(name, of, 0);
		break;
	default:
		f->result = NOT_SUPPORTED;
	}
}

API int nvmlDeviceGetFieldValues(struct handle *h, int count, struct field *fields)
{
	ENTER_CARD(h);
	tick(h->gpu);
	for (int i = 0; i < count; i++)
		answer(h->gpu, &fields[i]);
	return leave(SUCCESS);
}

static unsigned newer(const struct ring *ring, unsigned of, uint64_t since_us, struct sample *out)
{
	unsigned long long first = ring->written > RING ? ring->written - RING : 0;
	unsigned found = 0;

	for (unsigned long long i = first; i < ring->written; i++) {
		const struct sample *s = &ring->samples[i % RING];

		if (s->gpu == of && s->unix_us > since_us)
			out[found++] = *s;
	}
	return found;
}

struct clock_sample {
	unsigned long long unix_us;
	union {
		unsigned u;
		unsigned long long ull;
	} value;
};

API int nvmlDeviceGetSamples(struct handle *h, unsigned type, unsigned long long since_us, unsigned *value_type,
			     unsigned *count, struct clock_sample *out)
{
	struct sample found[RING];
	unsigned n;

	ENTER_CARD(h);
	if (type != 5) /* the processor's clock */
		return leave(NOT_SUPPORTED);
	*value_type = 1; /* unsigned int */
	if (!out) {
		*count = RING;
		return leave(SUCCESS);
	}
	n = newer(&clocks, h->gpu, since_us, found);
	if (!n)
		return leave(NOT_FOUND);
	n = n < *count ? n : *count;
	for (unsigned i = 0; i < n; i++) {
		out[i].unix_us = found[i].unix_us;
		out[i].value.u = found[i].value;
	}
	*count = n;
	return leave(SUCCESS);
}

/* ---- processes ---- */

struct process {
	unsigned pid;
	unsigned long long bytes;
	unsigned gpu_instance, compute_instance;
};

static int list(const char *function, struct handle *h, unsigned *count, struct process *out)
{
	int code = enter(function, h);
	bool graphics = strstr(function, "Graphics");
	unsigned found = 0, room;

	if (code)
		return code;
	room = out ? *count : 0;
	for (int i = 0; i < FAKE_PROCESSES && !graphics; i++) {
		struct fake_process *p = &gpu->devices[h->gpu].processes[i];

		if (!alive(get(&p->pid)) || !belongs(h, i))
			continue;
		if (found++ < room) {
			unsigned instance = h->instance == ALL ? ~0u : (unsigned)h->instance + 1;

			out[found - 1] = (struct process){get(&p->pid), get(&p->memory_bytes), instance, instance};
			if (value("process_memory_unknown", h->gpu, 0))
				out[found - 1].bytes = NOT_AVAILABLE;
		}
	}
	*count = found;
	return leave(found > room ? INSUFFICIENT_SIZE : SUCCESS);
}

API int nvmlDeviceGetComputeRunningProcesses_v3(struct handle *h, unsigned *count, struct process *out)
{
	return list(__func__, h, count, out);
}

API int nvmlDeviceGetComputeRunningProcesses_v2(struct handle *h, unsigned *count, struct process *out)
{
	return list(__func__, h, count, out);
}

API int nvmlDeviceGetGraphicsRunningProcesses_v3(struct handle *h, unsigned *count, struct process *out)
{
	return list(__func__, h, count, out);
}

API int nvmlDeviceGetGraphicsRunningProcesses_v2(struct handle *h, unsigned *count, struct process *out)
{
	return list(__func__, h, count, out);
}

struct use {
	unsigned pid;
	unsigned long long unix_us;
	unsigned sm, memory, encoder, decoder;
};

API int nvmlDeviceGetProcessUtilization(struct handle *h, struct use *out, unsigned *count, unsigned long long since_us)
{
	struct sample found[RING];
	unsigned n, room;

	ENTER_CARD(h);
	if (mig(h))
		return leave(NOT_SUPPORTED);
	room = out ? *count : 0;
	n = newer(&uses, h->gpu, since_us, found);
	*count = n ? n : 1;
	if (!out || n > room)
		return leave(INSUFFICIENT_SIZE);
	if (!n)
		return leave(NOT_FOUND);
	for (unsigned i = 0; i < n; i++)
		out[i] = (struct use){found[i].pid, found[i].unix_us, found[i].value, found[i].value / 2, 0, 0};
	*count = n;
	return leave(SUCCESS);
}

/* ---- events ---- */

struct event {
	struct handle *device;
	unsigned long long type, data;
	unsigned gpu_instance, compute_instance;
};

API int nvmlEventSetCreate(struct event_set **out)
{
	ENTER(0);
	*out = calloc(1, sizeof(**out));
	return leave(SUCCESS);
}

API int nvmlEventSetFree(struct event_set *set)
{
	ENTER(0);
	free(set);
	return leave(SUCCESS);
}

API int nvmlDeviceGetSupportedEventTypes(struct handle *h, unsigned long long *types)
{
	ENTER_CARD(h);
	*types = value("event_types", h->gpu, XID_EVENT | DBE_EVENT);
	return leave(SUCCESS);
}

API int nvmlDeviceRegisterEvents(struct handle *h, unsigned long long types, struct event_set *set)
{
	ENTER_CARD(h);
	set->types[h->gpu] |= types;
	return leave(SUCCESS);
}

static bool due(struct rule *r, const struct event_set *set, struct event *out)
{
	bool is_xid = !strcmp(r->verb, "xid");
	unsigned long long type = is_xid ? XID_EVENT : DBE_EVENT;

	if ((!is_xid && strcmp(r->verb, "dbe")) || r->fired || r->ms > script_ms() || !(set->types[r->gpu] & type))
		return false;
	r->fired = true;
	*out = (struct event){&handles[r->gpu][0], type, is_xid ? r->number : 0, ~0u, ~0u};
	return true;
}

API int nvmlEventSetWait_v2(struct event_set *set, struct event *out, unsigned timeout_ms)
{
	uint64_t until = now_ns() + timeout_ms * MS;

	do {
		struct timespec pause = {0, 20 * MS};

		ENTER(0);
		for (struct rule *r = rules; r < rules + rule_count; r++) {
			if (due(r, set, out))
				return leave(SUCCESS);
		}
		leave(SUCCESS);
		nanosleep(&pause, 0);
	} while (now_ns() < until);
	return TIMEOUT;
}

/* ---- MIG ---- */

API int nvmlDeviceGetMigMode(struct handle *h, unsigned *current, unsigned *pending)
{
	ENTER_CARD(h);
	*current = *pending = !!mig(h);
	return leave(SUCCESS);
}

API int nvmlDeviceGetMaxMigDeviceCount(struct handle *h, unsigned *count)
{
	ENTER_CARD(h);
	*count = INSTANCES;
	return leave(SUCCESS);
}

API int nvmlDeviceGetMigDeviceHandleByIndex(struct handle *h, unsigned index, struct handle **out)
{
	ENTER_CARD(h);
	if (!mig(h) || index >= mig(h)->count)
		return leave(NOT_FOUND);
	*out = h + 1 + index;
	return leave(SUCCESS);
}

API int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(struct handle *h, struct handle **out)
{
	ENTER(h);
	*out = &handles[h->gpu][0];
	return leave(SUCCESS);
}

API int nvmlDeviceGetGpuInstanceId(struct handle *h, unsigned *out)
{
	ENTER(h);
	*out = h->instance + 1;
	return leave(h->instance == ALL ? NOT_SUPPORTED : SUCCESS);
}

/* ---- GPM ---- */

struct gpm_support {
	unsigned version, supported;
};

struct gpm_metric {
	unsigned id;
	int result;
	double value;
	const char *names[3];
};

struct gpm_get {
	unsigned version, count;
	struct gpm_sample *before, *after;
	struct gpm_metric metrics[];
};

API int nvmlGpmQueryDeviceSupport(struct handle *h, struct gpm_support *out)
{
	ENTER_CARD(h);
	out->supported = value("gpm", h->gpu, 1);
	return leave(out->version == 1 ? SUCCESS : ARGUMENT_VERSION_MISMATCH);
}

API int nvmlGpmSampleAlloc(struct gpm_sample **out)
{
	ENTER(0);
	*out = calloc(1, sizeof(**out));
	return leave(SUCCESS);
}

API int nvmlGpmSampleFree(struct gpm_sample *sample)
{
	ENTER(0);
	free(sample);
	return leave(SUCCESS);
}

API int nvmlGpmSampleGet(struct handle *h, struct gpm_sample *sample)
{
	ENTER_CARD(h);
	sample->at_ns = now_ns();
	sample->done_ns = done_ns(h->gpu, sample->at_ns);
	return leave(SUCCESS);
}

API int nvmlGpmMigSampleGet(struct handle *h, unsigned gpu_instance, struct gpm_sample *sample)
{
	(void)gpu_instance;
	return nvmlGpmSampleGet(h, sample);
}

API int nvmlGpmMetricsGet(struct gpm_get *get_these)
{
	double took, busy;

	ENTER(0);
	if (get_these->version != 1)
		return leave(ARGUMENT_VERSION_MISMATCH);
	took = get_these->after->at_ns - get_these->before->at_ns;
	busy = took > 0 ? 100 * (get_these->after->done_ns - get_these->before->done_ns) / took : 0;
	for (unsigned i = 0; i < get_these->count; i++) {
		struct gpm_metric *m = &get_these->metrics[i];
		char name[32];

		snprintf(name, sizeof(name), "gpm:%u", m->id);
		m->result = took > 0 ? error_of(name, ALL) : INVALID_ARGUMENT;
		m->value = value(name, ALL, busy);
	}
	return leave(SUCCESS);
}
