/*
 * shim.so - stands between vmcore-split and the C library (LD_PRELOAD), to see what it reads and to let calls fail.
 *
 * SHIM_FILE   the file that is meant, by its name now
 * SHIM_LOG    write a line "offset size" to this file for every pread of SHIM_FILE
 * SHIM_FAULT  CALL:ERROR:FIRST[:COUNT] - the FIRST call (counted from 1) of CALL and the COUNT - 1 after it (default: all)
 *             fail with this errno.  Calls: read (pread of SHIM_FILE), write (write, pwrite), sync (fsync), resize
 *             (ftruncate), name (renameat2, linkat).  ERROR "kill", "term", "int" raise the signal instead;
 *             "short" moves one byte only.  Others do something before the call, once: "shrink" cuts SHIM_FILE to half
 *             its size; "move" moves the directory SHIM_DIRECTORY out of the way, "remove" removes it, "swap" puts a link
 *             to the directory SHIM_VICTIM in its place; "appear" makes the file SHIM_TARGET;
 *             "escape" reads and writes what is none of the program's business, and tells how much of that went well.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static dev_t device;
static ino_t inode;
static int log_file = -1;
static char fault_call[16], fault_error[16];
static long fault_first, fault_count = LONG_MAX;
static atomic_long calls, acted;

__attribute__((constructor)) static void start(void)
{
	struct stat status;
	const char *text;

	if ((text = getenv("SHIM_FILE")) && stat(text, &status) == 0) {
		device = status.st_dev;
		inode = status.st_ino;
	}
	if ((text = getenv("SHIM_LOG")))
		log_file = open(text, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600);
	if ((text = getenv("SHIM_FAULT"))
	    && sscanf(text, "%15[a-z]:%15[A-Za-z0-9]:%ld:%ld", fault_call, fault_error, &fault_first, &fault_count) < 3)
		abort();
}

static int is_source(int fd)
{
	struct stat status;

	return inode && fstat(fd, &status) == 0 && status.st_dev == device && status.st_ino == inode;
}

static int number(const char *name)
{
	static const struct { const char *name; int value; } known[] = {
		{ "EIO", EIO }, { "EINTR", EINTR }, { "ENOSPC", ENOSPC }, { "EDQUOT", EDQUOT }, { "EFBIG", EFBIG },
		{ "EROFS", EROFS }, { "ESTALE", ESTALE }, { "EINVAL", EINVAL }, { "ENOENT", ENOENT },
		{ "EOPNOTSUPP", EOPNOTSUPP }, { "EPERM", EPERM },
	};
	for (size_t i = 0; i < sizeof(known) / sizeof(*known); i++)
		if (!strcmp(known[i].name, name))
			return known[i].value;
	abort();
}

static int escape(void)
{
	char path[PATH_MAX];
	int done = 0, file;
	struct sockaddr_in address = { .sin_family = AF_INET };

	if ((file = open("/etc/passwd", O_RDONLY)) >= 0)
		done += close(file) == 0;
	snprintf(path, sizeof path, "%s/escaped", getenv("SHIM_VICTIM"));
	if ((file = open(path, O_WRONLY | O_CREAT, 0600)) >= 0)
		done += close(file) == 0 && unlink(path) == 0;
	if ((file = open(getenv("SHIM_FILE"), O_WRONLY)) >= 0)
		done += close(file) == 0;
	if ((file = socket(AF_INET, SOCK_STREAM, 0)) >= 0 && bind(file, (struct sockaddr *)&address, sizeof address) == 0)
		done += close(file) == 0;
	dprintf(STDERR_FILENO, "shim: escape: %d of 4\n", done);
	return 0;
}

/* What is done before a call, by the name of the fault. */
static int act(void)
{
	struct stat status;
	char moved[PATH_MAX];
	const char *file = getenv("SHIM_FILE"), *directory = getenv("SHIM_DIRECTORY");

	if (!strcmp(fault_error, "escape"))
		return escape();
	if (!strcmp(fault_error, "shrink"))
		return stat(file, &status) || truncate(file, status.st_size / 2);
	if (!strcmp(fault_error, "remove"))
		return rmdir(directory);
	if (!strcmp(fault_error, "appear"))
		return close(open(getenv("SHIM_TARGET"), O_WRONLY | O_CREAT | O_EXCL, 0600));
	snprintf(moved, sizeof moved, "%s.moved", directory);
	if (rename(directory, moved))
		return -1;
	return strcmp(fault_error, "swap") ? 0 : symlink(getenv("SHIM_VICTIM"), directory);
}

/* Whether this call is to fail, with errno set; may not return at all.  Sets *is_short if it is to move one byte. */
static int fails(const char *call, int *is_short)
{
	if (!fault_first || strcmp(call, fault_call))
		return 0;
	long index = atomic_fetch_add(&calls, 1) + 1;
	if (index < fault_first || index - fault_first >= fault_count)
		return 0;
	if (!strcmp(fault_error, "short")) {
		if (is_short)
			*is_short = 1;
		return 0;
	}
	if (!strcmp(fault_error, "kill") || !strcmp(fault_error, "term") || !strcmp(fault_error, "int")) {
		kill(getpid(), *fault_error == 'k' ? SIGKILL : *fault_error == 't' ? SIGTERM : SIGINT);
		pause();
	}
	if (islower(*fault_error)) {
		if (!atomic_fetch_add(&acted, 1) && act() != 0)
			abort();
		return 0;
	}
	errno = number(fault_error);
	return 1;
}

#define REAL(name) \
	static __typeof__(name) *real; \
	if (!real) \
		real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

ssize_t pread(int fd, void *buffer, size_t size, off_t offset)
{
	REAL(pread);
	int is_short = 0;
	if (inode && is_source(fd)) {
		char line[64];
		if (log_file >= 0)
			(void)!write(log_file, line, snprintf(line, sizeof line, "%lld %zu\n", (long long)offset, size));
		if (fails("read", &is_short))
			return -1;
	}
	return real(fd, buffer, is_short && size ? 1 : size, offset);
}

ssize_t pread64(int fd, void *buffer, size_t size, off64_t offset)
{
	return pread(fd, buffer, size, offset);
}

ssize_t write(int fd, const void *buffer, size_t size)
{
	REAL(write);
	int is_short = 0;
	if (fd != STDERR_FILENO && fd != log_file && fails("write", &is_short))
		return -1;
	return real(fd, buffer, is_short && size ? 1 : size);
}

ssize_t pwrite(int fd, const void *buffer, size_t size, off_t offset)
{
	REAL(pwrite);
	int is_short = 0;
	if (fails("write", &is_short))
		return -1;
	return real(fd, buffer, is_short && size ? 1 : size, offset);
}

ssize_t pwrite64(int fd, const void *buffer, size_t size, off64_t offset)
{
	return pwrite(fd, buffer, size, offset);
}

int fsync(int fd)
{
	REAL(fsync);
	return fails("sync", NULL) ? -1 : real(fd);
}

int ftruncate(int fd, off_t size)
{
	REAL(ftruncate);
	return fails("resize", NULL) ? -1 : real(fd, size);
}

int ftruncate64(int fd, off64_t size)
{
	return ftruncate(fd, size);
}

int renameat2(int from, const char *old, int to, const char *new, unsigned int flags)
{
	REAL(renameat2);
	return fails("name", NULL) ? -1 : real(from, old, to, new, flags);
}

int linkat(int from, const char *old, int to, const char *new, int flags)
{
	REAL(linkat);
	return fails("name", NULL) ? -1 : real(from, old, to, new, flags);
}
