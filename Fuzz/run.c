/*
 * run SECONDS BYTES REPORT PROGRAM... - runs a program for at most so many seconds, with files of at most so many bytes,
 * and writes what wait4 says of it: "exit|signal|late NUMBER PEAK-KIB".
 *
 * A process of its own, as the peak of memory that Linux tells of a child begins with its parent's size.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static pid_t child;
static volatile sig_atomic_t is_late;

static void end(int signal)
{
	(void)signal;
	is_late = 1;
	kill(child, SIGKILL);
}

int main(int argc, char **argv)
{
	struct rusage usage;
	int status;

	if (argc < 5)
		return 2;
	if ((child = fork()) == 0) {
		struct rlimit size = { strtoul(argv[2], NULL, 10), strtoul(argv[2], NULL, 10) }, none = { 0, 0 };
		setrlimit(RLIMIT_FSIZE, &size);
		setrlimit(RLIMIT_CORE, &none);
		execv(argv[4], argv + 4);
		_exit(127);
	}
	signal(SIGALRM, end);
	alarm(atoi(argv[1]));
	while (wait4(child, &status, 0, &usage) != child)
		;
	FILE *report = fopen(argv[3], "w");
	fprintf(report, "%s %d %ld\n", is_late ? "late" : WIFSIGNALED(status) ? "signal" : "exit",
		WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status), usage.ru_maxrss);
	return fclose(report) != 0;
}
