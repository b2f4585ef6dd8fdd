// SPDX-License-Identifier: Apache-2.0
/*
 * A context-switch storm: pairs of threads that hand one byte back and forth through two pipes, both threads of
 * a pair on one CPU, so that every hand-over is a context switch and no placement by the scheduler counts.
 *
 *   storm PAIRS WORK_NS
 *
 * Each thread spins for WORK_NS before it hands the byte on; 0 storms flat out. Pairs are spread over the CPUs
 * that the process may use. Prints "ready"; then, for each line "MS [PER_S]" on stdin, storms for so many
 * milliseconds and prints the round trips made and the nanoseconds it took. With PER_S each pair makes so many round
 * trips a second, some every millisecond, and sleeps in between. Between two lines all threads sleep. Ends at the
 * end of stdin.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

struct pair {
	int to_pong[2];
	int to_ping[2];
	int cpu;
	_Alignas(64) unsigned long round_trips;
};

static atomic_bool stop;
static long long work_ns;
static long long start_ns; /* of the storm */
static long long per_s;    /* round trips a pair; 0: as many as there can be */
static pthread_barrier_t gate; /* all pings and the main thread: passed at the start and at the end of a storm */

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void pin(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		die("sched_setaffinity");
}

static long long now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static void work(void)
{
	long long until = work_ns ? now_ns() + work_ns : 0;

	while (until && now_ns() < until)
		;
}

/* Sleep until the next millisecond of the storm, if all round trips are made that are due by now. */
static void pace(unsigned long round_trips)
{
	long long passed_ms = (now_ns() - start_ns) / 1000000, next_ns;
	struct timespec until;

	if ((long long)round_trips * 1000 < (passed_ms + 1) * per_s)
		return;
	next_ns = start_ns + (passed_ms + 1) * 1000000;
	until.tv_sec = next_ns / 1000000000;
	until.tv_nsec = next_ns % 1000000000;
	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
}

static void *ping(void *argument)
{
	struct pair *pair = argument;
	char byte = 0;

	pin(pair->cpu);
	for (;;) {
		pthread_barrier_wait(&gate);
		while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
			if (per_s)
				pace(pair->round_trips);
			work();
			if (write(pair->to_pong[1], &byte, 1) != 1 || read(pair->to_ping[0], &byte, 1) != 1)
				die("ping");
			pair->round_trips++;
		}
		pthread_barrier_wait(&gate);
	}
	return NULL;
}

static void *pong(void *argument)
{
	struct pair *pair = argument;
	char byte;

	pin(pair->cpu);
	for (;;) {
		if (read(pair->to_pong[0], &byte, 1) != 1)
			die("pong");
		work();
		if (write(pair->to_ping[1], &byte, 1) != 1)
			die("pong");
	}
	return NULL;
}

static void storm(struct pair *pairs, int count, long ms)
{
	struct timespec length = {ms / 1000, ms % 1000 * 1000000};
	unsigned long round_trips = 0;
	long long took;

	for (int i = 0; i < count; i++)
		pairs[i].round_trips = 0;
	atomic_store(&stop, 0);
	start_ns = now_ns();
	pthread_barrier_wait(&gate);
	nanosleep(&length, NULL);
	atomic_store(&stop, 1);
	pthread_barrier_wait(&gate);
	took = now_ns() - start_ns;
	for (int i = 0; i < count; i++)
		round_trips += pairs[i].round_trips;
	printf("%lu %lld\n", round_trips, took);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	int count = argc == 3 ? atoi(argv[1]) : 0;
	struct pair *pairs = count > 0 ? aligned_alloc(64, count * sizeof(*pairs)) : NULL;
	int cpus[CPU_SETSIZE], n_cpus = 0;
	pthread_t thread;
	cpu_set_t allowed;
	char line[64];
	long ms;

	if (!pairs) {
		fprintf(stderr, "usage: storm PAIRS WORK_NS\n");
		return 2;
	}
	work_ns = atoll(argv[2]);
	if (sched_getaffinity(0, sizeof(allowed), &allowed))
		die("sched_getaffinity");
	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
		if (CPU_ISSET(cpu, &allowed))
			cpus[n_cpus++] = cpu;
	pthread_barrier_init(&gate, NULL, count + 1);
	for (int i = 0; i < count; i++) {
		if (pipe(pairs[i].to_pong) || pipe(pairs[i].to_ping))
			die("pipe");
		pairs[i].cpu = cpus[i % n_cpus];
		if (pthread_create(&thread, NULL, ping, &pairs[i]) || pthread_create(&thread, NULL, pong, &pairs[i]))
			die("pthread_create");
	}
	printf("ready\n");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		per_s = 0;
		if (sscanf(line, "%ld %lld", &ms, &per_s) < 1)
			break;
		storm(pairs, count, ms);
	}
	return 0;
}
