/* A C program that has the library inside and handlers of its own for its signals.
 * It waits in several threads, with a deadline, and looks at what became of its
 * handlers. usage: host LIBRARY.so|- PATH     "-": the library is linked in. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef LINKED
extern int flockctx_wait(char *, int, int);
static int (*lock_wait)(char *, int, int) = flockctx_wait;
#else
static int (*lock_wait)(char *, int, int);
#endif

static char *path;
static int failed;
static atomic_int stop;
static const char *const ways[] = {"auto", "block", "poll"};
static volatile sig_atomic_t calls[NSIG];

static void handler(int sig) { calls[sig]++; }

/* The signals of which a host may have handlers: not those that report faults. */
static int hosts(int sig)
{
	switch (sig) {
	case SIGKILL: case SIGSTOP: case SIGSEGV: case SIGBUS: case SIGFPE: case SIGILL: case SIGTRAP:
	case SIGABRT: case SIGSYS: case SIGALRM: case 32: case 33: case 34: /* libc's */
		return 0;
	}
	return 1;
}

static void set_handlers(void)
{
	struct sigaction a = {.sa_handler = handler, .sa_flags = SA_ONSTACK | SA_RESTART};
	for (int sig = 1; sig < NSIG; sig++)
		if (hosts(sig))
			sigaction(sig, &a, NULL);
}

static void check_handlers(const char *when)
{
	for (int sig = 1; sig < NSIG; sig++) {
		struct sigaction a;
		if (!hosts(sig) || sigaction(sig, NULL, &a) != 0)
			continue;
		if (a.sa_handler != handler || !(a.sa_flags & SA_RESTART)) {
			printf("%s: the handler of signal %d is not the host's any more\n", when, sig);
			failed = 1;
		}
		int before = calls[sig];
		if (sig == SIGPIPE || sig == SIGPROF) /* Go forwards those of its own threads only */
			continue;
		if (before > 0)
			printf("%s: signal %d came %d times\n", when, sig, before);
		raise(sig);
		if (calls[sig] != before + 1) {
			printf("%s: the host's signal %d came %d times\n", when, sig, calls[sig] - before);
			failed = 1;
		}
	}
}

static void *waiter(void *arg)
{
	int way = *(const int *)arg, late = lock_wait(path, way, 200);
	if (late > 3000 || late == -1 || late == -3 || (late == -2 && way != 1)) {
		printf("%s: %d\n", ways[way], late);
		failed = 1;
	}
	return arg;
}

/* Six threads wait, two each way. */
static void wait_all(const char *when)
{
	static const int way[] = {0, 1, 2, 0, 1, 2};
	pthread_t t[6];
	printf("%s\n", when);
	fflush(stdout);
	alarm(30); /* a wait that never ends */
	for (int i = 0; i < 6; i++)
		pthread_create(&t[i], NULL, waiter, (void *)&way[i]);
	for (int i = 0; i < 6; i++)
		pthread_join(t[i], NULL);
	alarm(0);
}

/* The host plays with all of its signals. */
static void *toggler(void *arg)
{
	struct sigaction mine = {.sa_handler = handler, .sa_flags = SA_ONSTACK}, ign = {.sa_handler = SIG_IGN};
	while (!stop)
		for (int sig = 1; sig < NSIG; sig++)
			if (hosts(sig)) {
				sigaction(sig, &ign, NULL);
				sigaction(sig, &mine, NULL);
			}
	return arg;
}

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	path = argv[2];
#ifndef LINKED
	if (getenv("EARLY"))
		set_handlers();
	void *lib = dlopen(argv[1], RTLD_NOW);
	if (!lib || !(lock_wait = (int (*)(char *, int, int))dlsym(lib, "flockctx_wait"))) {
		fprintf(stderr, "%s\n", dlerror());
		return 2;
	}
#endif
	wait_all("no handlers since the library");
	set_handlers();
	wait_all("handlers of the host");
	check_handlers("after the waits");

	sigset_t all, old;
	sigfillset(&all);
	sigdelset(&all, SIGALRM);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	wait_all("all signals blocked");
	pthread_sigmask(SIG_SETMASK, &old, NULL);

	pthread_t t;
	pthread_create(&t, NULL, toggler, NULL);
	for (int i = 0; i < 10; i++)
		wait_all("signals toggled");
	stop = 1;
	pthread_join(t, NULL);
	set_handlers();
	memset((void *)calls, 0, sizeof calls);
	check_handlers("at the end");
	printf("%s\n", failed ? "FAIL" : "ok");
	return failed;
}
