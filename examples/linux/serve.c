/* A function of the gateway's as a Linux program: HTTP/1.1 on the listening socket that is
 * descriptor 3, and what it says of itself on 4. It trusts its input: only tests talk to it.
 *
 *   /echo        the body, as it comes
 *   /head        the request's line and headers
 *   /pid         this process's start time, which tells containers apart
 *   /sleep/MS    answers after so many milliseconds
 *   /stream/N    N pieces of 1000 bytes
 *   /exit/N      ends the process with status N, without an answer
 *   /say/TEXT    writes TEXT to stderr
 *   other        "hello"
 *
 * With an argument "fail..." it says so and ends with status 3. */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <poll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static atomic_int requests, busy;
static long long started;

struct reader {
	int socket;
	size_t have, at;
	char buffer[65536];
};

static int fill(struct reader *in)
{
	if (in->at == in->have)
		in->at = in->have = 0;
	ssize_t n = read(in->socket, in->buffer + in->have, sizeof in->buffer - in->have);
	if (n <= 0)
		return 0;
	in->have += (size_t)n;
	return 1;
}

static int next(struct reader *in)
{
	if (in->at == in->have && !fill(in))
		return -1;
	return (unsigned char)in->buffer[in->at++];
}

static int line(struct reader *in, char *text, size_t size)
{
	size_t length = 0;
	for (;;) {
		int c = next(in);
		if (c < 0)
			return -1;
		if (c == '\n')
			break;
		if (c != '\r' && length + 1 < size)
			text[length++] = (char)c;
	}
	text[length] = 0;
	return (int)length;
}

static int put(int socket, const char *bytes, size_t length)
{
	while (length > 0) {
		ssize_t n = send(socket, bytes, length, MSG_NOSIGNAL);
		if (n <= 0)
			return 0;
		bytes += n;
		length -= (size_t)n;
	}
	return 1;
}

static int chunk(int socket, const char *bytes, size_t length)
{
	char head[32];
	int n = sprintf(head, "%zx\r\n", length);
	return put(socket, head, (size_t)n) && put(socket, bytes, length) && put(socket, "\r\n", 2);
}

static int answer(int socket, const char *type, const char *body, size_t length)
{
	char head[256];
	int n = sprintf(head, "HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %zu\r\n\r\n",
			type, length);
	return put(socket, head, (size_t)n) && put(socket, body, length);
}

/* One request; 0 when the connection is over. */
static int serve(struct reader *in, int admin)
{
	static _Thread_local char head[32768], text[8192], path[4096];
	if (line(in, text, sizeof text) <= 0 || sscanf(text, "%*s %4095s", path) != 1)
		return 0;
	size_t used = (size_t)snprintf(head, sizeof head, "%s\n", text);
	long long length = 0;
	int chunked = 0;
	while (line(in, text, sizeof text) > 0) {
		used += (size_t)snprintf(head + used, sizeof head - used, "%s\n", text);
		if (used >= sizeof head)
			return 0;
		if (!strncasecmp(text, "content-length:", 15))
			length = atoll(text + 15);
		if (!strncasecmp(text, "transfer-encoding: chunked", 26))
			chunked = 1;
	}
	if (admin) {
		char stats[256];
		int n = sprintf(stats,
				"{\"warm\":1,\"busy\":%d,\"queued\":0,\"requests\":%d,\"errors\":0,"
				"\"cold_starts\":0}", busy, requests);
		return answer(in->socket, "application/json", stats, (size_t)n);
	}
	requests++;
	int echo = !strcmp(path, "/echo");
	int ok = 1;
	if (echo)
		ok = put(in->socket, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 47);
	for (;;) {
		if (chunked && length == 0) {
			if (line(in, text, sizeof text) < 0)
				return 0;
			length = strtoll(text, NULL, 16);
			if (length == 0) {
				line(in, text, sizeof text);
				break;
			}
		}
		if (!chunked && length == 0)
			break;
		if (in->at == in->have && !fill(in))
			return 0;
		size_t piece = in->have - in->at;
		if ((long long)piece > length)
			piece = (size_t)length;
		if (echo && ok)
			ok = chunk(in->socket, in->buffer + in->at, piece);
		in->at += piece;
		length -= (long long)piece;
		if (chunked && length == 0)
			line(in, text, sizeof text);
	}
	if (echo)
		return ok && put(in->socket, "0\r\n\r\n", 5);
	if (!strcmp(path, "/head"))
		return answer(in->socket, "text/plain", head, used);
	if (!strcmp(path, "/pid"))
		return answer(in->socket, "text/plain", text, (size_t)sprintf(text, "%lld", started));
	if (!strncmp(path, "/sleep/", 7)) {
		usleep((useconds_t)atoi(path + 7) * 1000);
		return answer(in->socket, "text/plain", "slept", 5);
	}
	if (!strncmp(path, "/exit/", 6)) {
		fprintf(stderr, "going, as asked\n");
		exit(atoi(path + 6));
	}
	if (!strncmp(path, "/say/", 5)) {
		fprintf(stderr, "%s\n", path + 5);
		return answer(in->socket, "text/plain", "said", 4);
	}
	if (!strncmp(path, "/stream/", 8)) {
		memset(text, 'x', 1000);
		ok = put(in->socket, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 47);
		for (int n = atoi(path + 8); ok && n > 0; n--)
			ok = chunk(in->socket, text, 1000);
		if (!ok)
			fprintf(stderr, "the reader has gone\n");
		return ok && put(in->socket, "0\r\n\r\n", 5);
	}
	return answer(in->socket, "text/plain", "hello", 5);
}

static void *connection(void *socket)
{
	struct reader *in = malloc(sizeof *in);
	in->socket = (int)((long)socket / 2);
	in->have = in->at = 0;
	int admin = (long)socket % 2;
	for (int more = 1; more;) {
		struct pollfd polled = { .fd = in->socket, .events = POLLIN };
		if (in->at == in->have)
			poll(&polled, 1, -1);
		busy += !admin;
		more = serve(in, admin);
		busy -= !admin;
	}
	close(in->socket);
	free(in);
	return NULL;
}

static void end(int signal)
{
	(void)signal;
	_exit(0);
}

int main(int argc, char **argv)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	started = now.tv_sec * 1000000000LL + now.tv_nsec;
	signal(SIGTERM, end);
	for (int i = 1; i < argc; i++) {
		if (!strncmp(argv[i], "fail", 4)) {
			fprintf(stderr, "cannot do this%s\n", argv[i] + 4);
			return 3;
		}
	}
	pthread_attr_t small;
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 128 << 10);
	pthread_attr_setdetachstate(&small, PTHREAD_CREATE_DETACHED);
	struct pollfd sockets[2] = { { .fd = 3, .events = POLLIN }, { .fd = 4, .events = POLLIN } };
	for (;;) {
		if (poll(sockets, 2, -1) < 0)
			continue;
		for (int i = 0; i < 2; i++) {
			int socket = sockets[i].revents ? accept(sockets[i].fd, NULL, NULL) : -1;
			pthread_t thread;
			if (socket >= 0 &&
			    pthread_create(&thread, &small, connection, (void *)(long)(socket * 2 + i)))
				close(socket);
		}
	}
}
