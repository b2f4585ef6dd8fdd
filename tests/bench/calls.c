// SPDX-License-Identifier: Apache-2.0
/*
 * Threads that do nothing but one thing which a probe sees, as fast as they can.
 *
 *   calls KIND COUNT [FILE]
 *
 * futex, pipe, poll, tcp, signal: COUNT pairs of threads, both of a pair on one CPU, that hand over to each other by
 * this means and sleep on it in between: a message of 101 bytes on a loopback connection for tcp, a byte otherwise.
 * read: 4 KiB of FILE, past the page cache. cached: 1 MiB of FILE through it. map: mmap, touch, munmap of a page.
 * connect: a loopback connection made, accepted and reset. getppid: one system call. winch, cont: one signal to its
 * own process. gpu_call, gpu_launch, gpu_stepped: a call of the function of that name. These are done by COUNT single
 * threads.
 *
 * Prints "ready"; then, for each line with a number of milliseconds on stdin, works for so long and prints how often
 * it was done (round trips for pairs) and the nanoseconds it took. Between two lines all threads sleep. Ends at the
 * end of stdin.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define MESSAGE 101

enum { PING, PONG };

struct side {
	pthread_t thread;
	int in; /* what this side reads and the other one writes: one descriptor each, or one socket */
	int out;
	_Alignas(64) atomic_uint word;
};

struct worker {
	struct side sides[2];
	int cpu;
	int file;
	off_t at;
	char *page;
	_Alignas(64) unsigned long done;
};

struct kind { /* either hand and await, or once */
	const char *name;
	void (*open)(struct worker *);
	void (*hand)(struct worker *, int from);
	void (*await)(struct worker *, int side);
	void (*once)(struct worker *);
};

static atomic_bool stop;
static pthread_barrier_t gate; /* all pings and the main thread: passed at the start and at the end of a run */
static const struct kind *kind;
static const char *path;
static off_t length;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static long long now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static void open_pipes(struct worker *w)
{
	int ends[2];

	for (int side = PING; side <= PONG; side++) {
		if (pipe(ends))
			die("pipe");
		w->sides[side].in = ends[0];
		w->sides[!side].out = ends[1];
	}
}

static void open_connection(struct worker *w)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int listener = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0), server, on = 1;
	socklen_t size = sizeof(address);

	if (bind(listener, (void *)&address, size) || listen(listener, 1) ||
	    getsockname(listener, (void *)&address, &size) || connect(client, (void *)&address, size))
		die("connect");
	server = accept(listener, 0, 0);
	if (server < 0 || setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)) ||
	    setsockopt(server, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)))
		die("accept");
	close(listener);
	w->sides[PING].in = w->sides[PING].out = client;
	w->sides[PONG].in = w->sides[PONG].out = server;
}

static void open_file(struct worker *w)
{
	struct stat about;

	w->file = open(path, O_RDONLY | (strcmp(kind->name, "read") ? 0 : O_DIRECT));
	w->page = aligned_alloc(4096, 1 << 20);
	if (w->file < 0 || !w->page || fstat(w->file, &about))
		die(path);
	length = about.st_size;
}

static void open_listener(struct worker *w)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};

	w->file = socket(AF_INET, SOCK_STREAM, 0);
	if (bind(w->file, (void *)&address, sizeof(address)) || listen(w->file, 1))
		die("listen");
}

static void connect_once(struct worker *w)
{
	struct linger reset = {.l_onoff = 1}; /* leaves no TIME_WAIT, so that ports do not run out */
	int client = socket(AF_INET, SOCK_STREAM, 0), server;
	struct sockaddr_in address;
	socklen_t size = sizeof(address);

	if (getsockname(w->file, (void *)&address, &size) || connect(client, (void *)&address, size))
		die("connect");
	server = accept(w->file, 0, 0);
	if (server < 0 || setsockopt(client, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset)))
		die("accept");
	close(client);
	close(server);
}

static void hand_word(struct worker *w, int from)
{
	atomic_store(&w->sides[!from].word, 1);
	syscall(SYS_futex, &w->sides[!from].word, FUTEX_WAKE_PRIVATE, 1, 0, 0, 0);
}

static void await_word(struct worker *w, int side)
{
	while (!atomic_load(&w->sides[side].word))
		syscall(SYS_futex, &w->sides[side].word, FUTEX_WAIT_PRIVATE, 0, 0, 0, 0);
	atomic_store(&w->sides[side].word, 0);
}

static void hand_byte(struct worker *w, int from)
{
	if (write(w->sides[from].out, "b", 1) != 1)
		die("write");
}

static void await_byte(struct worker *w, int side)
{
	char byte;

	if (read(w->sides[side].in, &byte, 1) != 1)
		die("read");
}

static void poll_byte(struct worker *w, int side)
{
	struct pollfd one = {.fd = w->sides[side].in, .events = POLLIN};

	if (poll(&one, 1, -1) != 1)
		die("poll");
	await_byte(w, side);
}

static void hand_message(struct worker *w, int from)
{
	char message[MESSAGE] = {0};

	if (send(w->sides[from].out, message, sizeof(message), 0) != sizeof(message))
		die("send");
}

static void await_message(struct worker *w, int side)
{
	char message[MESSAGE];

	if (recv(w->sides[side].in, message, sizeof(message), 0) != sizeof(message))
		die("recv");
}

static void hand_signal(struct worker *w, int from)
{
	pthread_kill(w->sides[!from].thread, SIGUSR1);
}

static void await_signal(struct worker *w, int side)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	if (sigwaitinfo(&set, 0) != SIGUSR1)
		die("sigwaitinfo");
}

static void read_some(struct worker *w, size_t bytes)
{
	if (pread(w->file, w->page, bytes, w->at) != (ssize_t)bytes)
		die("pread");
	w->at += 2 * bytes;
	if (w->at + (off_t)bytes > length)
		w->at = 0;
}

static void read_direct(struct worker *w)
{
	read_some(w, 4096);
}

static void read_cached(struct worker *w)
{
	read_some(w, 1 << 20);
}

static void map_page(struct worker *w)
{
	char *page = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (page == MAP_FAILED)
		die("mmap");
	*(volatile char *)page = 1;
	munmap(page, 4096);
}

static void call_once(struct worker *w)
{
	syscall(SYS_getppid);
}

static void signal_winch(struct worker *w)
{
	kill(getpid(), SIGWINCH); /* ignored by default */
}

static void signal_cont(struct worker *w)
{
	kill(getpid(), SIGCONT);
}

/*
 * In place of CUDA's functions, for uprobes. Those begin with a push, as functions do that keep registers of their
 * caller: the kernel does that instruction itself. gpu_stepped begins with one that it lets the CPU single-step.
 */
#define FUNCTION __attribute__((noinline)) int

static volatile int sink;

FUNCTION gpu_inner(int x)
{
	return sink += x;
}

FUNCTION gpu_call(int x)
{
	return gpu_inner(x) + gpu_inner(x + 1) + x;
}

FUNCTION gpu_launch(int x)
{
	return gpu_inner(x) + gpu_inner(x + 2) + x;
}

FUNCTION gpu_stepped(int x)
{
	return sink = 3 * x + 7;
}

static void call_gpu(struct worker *w)
{
	gpu_call(w->cpu);
}

static void launch_gpu(struct worker *w)
{
	gpu_launch(w->cpu);
}

static void launch_stepped(struct worker *w)
{
	gpu_stepped(w->cpu);
}

static const struct kind kinds[] = {
	{"futex", .hand = hand_word, .await = await_word},
	{"pipe", .open = open_pipes, .hand = hand_byte, .await = await_byte},
	{"poll", .open = open_pipes, .hand = hand_byte, .await = poll_byte},
	{"tcp", .open = open_connection, .hand = hand_message, .await = await_message},
	{"signal", .hand = hand_signal, .await = await_signal},
	{"read", .open = open_file, .once = read_direct},
	{"cached", .open = open_file, .once = read_cached},
	{"connect", .open = open_listener, .once = connect_once},
	{"map", .once = map_page},
	{"getppid", .once = call_once},
	{"winch", .once = signal_winch},
	{"cont", .once = signal_cont},
	{"gpu_call", .once = call_gpu},
	{"gpu_launch", .once = launch_gpu},
	{"gpu_stepped", .once = launch_stepped},
};

static void pin(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		die("sched_setaffinity");
}

static void *ping(void *argument)
{
	struct worker *w = argument;

	if (kind->hand)
		pin(w->cpu);
	for (;;) {
		pthread_barrier_wait(&gate);
		while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
			if (kind->once) {
				kind->once(w);
			} else {
				kind->hand(w, PING);
				kind->await(w, PING);
			}
			w->done++;
		}
		pthread_barrier_wait(&gate);
	}
	return NULL;
}

static void *pong(void *argument)
{
	struct worker *w = argument;

	pin(w->cpu);
	for (;;) {
		kind->await(w, PONG);
		kind->hand(w, PONG);
	}
	return NULL;
}

static void run(struct worker *workers, int count, long ms)
{
	struct timespec sleep = {ms / 1000, ms % 1000 * 1000000};
	unsigned long done = 0;
	long long start, took;

	for (int i = 0; i < count; i++)
		workers[i].done = 0;
	atomic_store(&stop, 0);
	start = now_ns();
	pthread_barrier_wait(&gate);
	nanosleep(&sleep, NULL);
	atomic_store(&stop, 1);
	pthread_barrier_wait(&gate);
	took = now_ns() - start;
	for (int i = 0; i < count; i++)
		done += workers[i].done;
	printf("%lu %lld\n", done, took);
	fflush(stdout);
}

static void start(pthread_t *thread, void *(*body)(void *), struct worker *w)
{
	if (pthread_create(thread, NULL, body, w))
		die("pthread_create");
}

int main(int argc, char **argv)
{
	int count = argc >= 3 ? atoi(argv[2]) : 0, cpus[CPU_SETSIZE], n_cpus = 0;
	struct worker *workers = count > 0 ? aligned_alloc(64, count * sizeof(*workers)) : NULL;
	cpu_set_t allowed;
	sigset_t blocked;
	char line[32];

	for (size_t i = 0; i < sizeof(kinds) / sizeof(*kinds); i++)
		if (argc >= 3 && !strcmp(argv[1], kinds[i].name))
			kind = &kinds[i];
	path = argc == 4 ? argv[3] : "";
	if (!workers || !kind) {
		fprintf(stderr, "usage: calls KIND COUNT [FILE]\n");
		return 2;
	}
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGUSR1);
	pthread_sigmask(SIG_BLOCK, &blocked, NULL);
	if (sched_getaffinity(0, sizeof(allowed), &allowed))
		die("sched_getaffinity");
	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
		if (CPU_ISSET(cpu, &allowed))
			cpus[n_cpus++] = cpu;
	memset(workers, 0, count * sizeof(*workers));
	pthread_barrier_init(&gate, NULL, count + 1);
	for (int i = 0; i < count; i++) {
		workers[i].cpu = cpus[i % n_cpus];
		if (kind->open)
			kind->open(&workers[i]);
		start(&workers[i].sides[PING].thread, ping, &workers[i]);
		if (kind->hand)
			start(&workers[i].sides[PONG].thread, pong, &workers[i]);
	}
	printf("ready\n");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin))
		run(workers, count, atol(line));
	return 0;
}
