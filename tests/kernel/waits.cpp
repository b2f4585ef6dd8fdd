/* Waits in functions of known names, with frame pointers down to the system call; talks by lines. */
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static __attribute__((noinline)) long sleep_us(long us)
{
	struct timespec time = {us / 1000000, us % 1000000 * 1000};
#if defined(__x86_64__)
	long result = SYS_nanosleep;
	asm volatile("syscall" : "+a"(result) : "D"(&time), "S"(0) : "rcx", "r11", "memory");
#elif defined(__aarch64__)
	register long result asm("x0") = (long)&time;
	register long x1 asm("x1") = 0, x8 asm("x8") = SYS_nanosleep;
	asm volatile("svc 0" : "+r"(result) : "r"(x1), "r"(x8) : "memory");
#endif
	return result;
}

namespace app
{
__attribute__((noinline)) long read_config(long us)
{
	return sleep_us(us) + 1;
}

__attribute__((noinline)) long check(long us)
{
	return sleep_us(us) + 2;
}
}

static long switches()
{
	struct rusage usage;
	getrusage(RUSAGE_SELF, &usage);
	return usage.ru_nvcsw;
}

/* As often as the kernel says that it blocked 23 times, at 10 ms each; then 7 times for a tenth of one. */
__attribute__((noinline)) long serve()
{
	long before = switches(), sum = 0;
	while (switches() - before < 23)
		sum += app::read_config(10000);
	for (int i = 0; i < 7; i++)
		sum += app::check(100);
	return sum;
}

int main()
{
	char line;
	app::read_config(0);
	switches();
	if (write(1, "ready\n", 6) == 6 && read(0, &line, 1) == 1 && serve() && write(1, "done\n", 5) == 5)
		return read(0, &line, 1) == 1;
	return 0;
}
