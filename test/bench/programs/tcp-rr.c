/* Request and response over TCP, a byte there and a byte back. `tcp-rr listen PORT` serves until it is killed. `tcp-rr turns PORT
 * ROUNDS MILLISECONDS NAMESPACE ADDRESS…` connects from each network namespace (a path) to each address (IPv4), and lets the
 * connections take turns, the next round backwards; for each round it prints the round trips per second of each. One process
 * and short turns, so that what else the machine does meanwhile weighs on all of them alike. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define CONNECTIONS 8
/* Not counted, at the beginning of each turn: the caches are the other connections'. */
#define WARM_UP 64

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void serve(int c)
{
	int one = 1;
	char byte;

	setsockopt(c, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	while (read(c, &byte, 1) == 1 && write(c, &byte, 1) == 1)
		;
	close(c);
}

static int echo(int port)
{
	struct sockaddr_in self = { .sin_family = AF_INET, .sin_port = htons(port) };
	int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;

	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(listener, (struct sockaddr *)&self, sizeof(self)) || listen(listener, 8)) {
		perror("listen");
		return 1;
	}
	for (;;)
		serve(accept(listener, NULL, NULL));
}

static int connect_from(const char *namespace, const char *address, int port)
{
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(port) };
	int ns = open(namespace, O_RDONLY | O_CLOEXEC), s, one = 1;

	if (ns < 0 || setns(ns, CLONE_NEWNET)) {
		perror(namespace);
		exit(1);
	}
	close(ns);
	s = socket(AF_INET, SOCK_STREAM, 0);
	if (inet_pton(AF_INET, address, &to.sin_addr) != 1 || connect(s, (struct sockaddr *)&to, sizeof(to))) {
		perror(address);
		exit(1);
	}
	setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	return s;
}

static void trips(int s, int count)
{
	char byte = 'x';

	while (count-- > 0)
		if (write(s, &byte, 1) != 1 || read(s, &byte, 1) != 1) {
			perror("round trip");
			exit(1);
		}
}

static double turn(int s, double seconds)
{
	double begin, end;
	unsigned long count = 0;

	trips(s, WARM_UP);
	begin = now();
	do {
		trips(s, 16);
		count += 16;
		end = now();
	} while (end - begin < seconds);
	return count / (end - begin);
}

static int turns(int argc, char **argv)
{
	int port = atoi(argv[0]), rounds = atoi(argv[1]), connections = (argc - 3) / 2;
	double seconds = atoi(argv[2]) / 1e3, rate[CONNECTIONS];
	int s[CONNECTIONS];

	if (connections > CONNECTIONS)
		return 2;
	for (int i = 0; i < connections; i++)
		s[i] = connect_from(argv[3 + 2 * i], argv[4 + 2 * i], port);
	for (int r = 0; r < rounds; r++) {
		for (int n = 0; n < connections; n++) {
			int i = r % 2 ? connections - 1 - n : n;

			rate[i] = turn(s[i], seconds);
		}
		for (int i = 0; i < connections; i++)
			printf("%.0f%c", rate[i], i < connections - 1 ? ' ' : '\n');
	}
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "listen"))
		return echo(atoi(argv[2]));
	if (argc >= 7 && argc % 2 && !strcmp(argv[1], "turns"))
		return turns(argc - 2, argv + 2);
	fputs("usage: tcp-rr listen PORT | turns PORT ROUNDS MILLISECONDS NAMESPACE ADDRESS...\n", stderr);
	return 2;
}
