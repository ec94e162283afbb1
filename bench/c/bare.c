/* The floor in C, driven by the Go program.
 *
 *   bare time PATH              reads "p N", "P N", "k N", "K N", "s N" from
 *                               standard input: N times by path or on a kept file
 *                               (capital: shared; s: kept, with a stat), and
 *                               answers with the nanoseconds it took
 *   bare handover PATH SHM ME HOLD    a worker as in handover.go
 *   bare again PATH FOR HOLD          a worker as in processes.go
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static int64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void die(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	exit(1);
}

static void lock(int fd, int how)
{
	while (flock(fd, how) != 0)
		if (errno != EINTR)
			die("flock");
}

static int open_file(const char *path)
{
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0)
		die(path);
	return fd;
}

static int time_calls(const char *path)
{
	char what;
	long n;
	int kept = open_file(path);
	struct stat st;
	while (scanf(" %c %ld", &what, &n) == 2) {
		int how = what == 'P' || what == 'K' ? LOCK_SH : LOCK_EX;
		int64_t start = now();
		for (long i = 0; i < n; i++) {
			if (what == 'p' || what == 'P') {
				int fd = open_file(path);
				lock(fd, how);
				close(fd);
			} else {
				lock(kept, how);
				if (what == 's' && stat(path, &st) != 0)
					die("stat");
				lock(kept, LOCK_UN);
			}
		}
		printf("%lld\n", (long long)(now() - start));
		fflush(stdout);
	}
	return 0;
}

struct board {
	uint32_t grants, stop, last, ready;
	int64_t released;
	uint32_t go;
};

static void futex_wait(uint32_t *p, uint32_t v)
{
	struct timespec t = {0, 20000000};
	syscall(SYS_futex, p, FUTEX_WAIT, v, &t, NULL, 0);
}

static int handover(const char *path, const char *shm, uint32_t me, long hold)
{
	int fd = open_file(path), sfd = open(shm, O_RDWR | O_CLOEXEC);
	if (sfd < 0)
		die(shm);
	volatile struct board *b = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, sfd, 0);
	if (b == MAP_FAILED)
		die("mmap");
	long n = 0, size = 1 << 20;
	int64_t *samples = malloc(size * sizeof *samples);
	__atomic_add_fetch(&b->ready, 1, __ATOMIC_SEQ_CST);
	while (!__atomic_load_n(&b->go, __ATOMIC_SEQ_CST))
		futex_wait((uint32_t *)&b->go, 0);
	for (;;) {
		lock(fd, LOCK_EX);
		int64_t t = now();
		if (__atomic_load_n(&b->stop, __ATOMIC_SEQ_CST))
			break;
		if (b->released != 0 && b->last != me && n < size)
			samples[n++] = t - b->released;
		b->last = me;
		uint32_t g = __atomic_add_fetch(&b->grants, 1, __ATOMIC_SEQ_CST);
		syscall(SYS_futex, &b->grants, FUTEX_WAKE, 1 << 30, NULL, NULL, 0);
		struct timespec h = {0, hold};
		nanosleep(&h, NULL);
		b->released = now();
		lock(fd, LOCK_UN);
		while (__atomic_load_n(&b->grants, __ATOMIC_SEQ_CST) == g && !__atomic_load_n(&b->stop, __ATOMIC_SEQ_CST))
			futex_wait((uint32_t *)&b->grants, g);
	}
	lock(fd, LOCK_UN);
	printf("[");
	for (long i = 0; i < n; i++)
		printf("%s%lld", i ? "," : "", (long long)samples[i]);
	printf("]\n");
	return 0;
}

static int64_t cpu(void)
{
	struct rusage u;
	getrusage(RUSAGE_SELF, &u);
	return (u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1000000000LL + (u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1000LL;
}

static int again(const char *path, int64_t length, int64_t hold)
{
	int fd = open_file(path);
	long long at;
	printf("ready\n");
	fflush(stdout);
	if (scanf("%lld", &at) != 1)
		die("no start");
	int64_t early = at - now();
	if (early > 0) {
		struct timespec t = {early / 1000000000, early % 1000000000};
		nanosleep(&t, NULL);
	}
	int64_t used = cpu(), end = at + length, grants = 0, longest = 0;
	for (;;) {
		int64_t before = now();
		lock(fd, LOCK_EX);
		int64_t t = now(), wait = (t < end ? t : end) - before;
		if (wait > longest)
			longest = wait;
		if (t < end) {
			grants++;
			while (hold > 0 && now() < t + hold)
				;
		}
		lock(fd, LOCK_UN);
		if (t >= end)
			break;
	}
	printf("{\"Grants\":%lld,\"Elapsed\":%lld,\"CPU\":%lld,\"Longest\":%lld}\n",
		(long long)grants, (long long)length, (long long)(cpu() - used), (long long)longest);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 3 && strcmp(argv[1], "time") == 0)
		return time_calls(argv[2]);
	if (argc == 6 && strcmp(argv[1], "handover") == 0)
		return handover(argv[2], argv[3], atoi(argv[4]), atol(argv[5]));
	if (argc == 5 && strcmp(argv[1], "again") == 0)
		return again(argv[2], atoll(argv[3]), atoll(argv[4]));
	fprintf(stderr, "usage: see the top of bare.c\n");
	return 2;
}
