/* Requests per second over one TCP connection: a byte there, a byte back. `tcp-rr listen PORT` serves until it is killed;
 * `tcp-rr ask ADDRESS PORT SECONDS` prints how many round trips it made and how long they took. IPv4. */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
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
	puts("listening");
	fflush(stdout);
	for (;;) {
		int c = accept(listener, NULL, NULL);
		char byte;

		setsockopt(c, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		while (read(c, &byte, 1) == 1 && write(c, &byte, 1) == 1)
			;
		close(c);
	}
}

static int ask(const char *address, int port, double seconds)
{
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(port) };
	int s = socket(AF_INET, SOCK_STREAM, 0), one = 1;
	unsigned long trips = 0;
	double begin, end;
	char byte = 'x';

	if (inet_pton(AF_INET, address, &to.sin_addr) != 1 || connect(s, (struct sockaddr *)&to, sizeof(to))) {
		perror("connect");
		return 1;
	}
	setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	begin = now();
	do {
		for (int i = 0; i < 64; i++, trips++)
			if (write(s, &byte, 1) != 1 || read(s, &byte, 1) != 1)
				return 1;
		end = now();
	} while (end - begin < seconds);
	printf("%lu %.6f\n", trips, end - begin);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "listen"))
		return echo(atoi(argv[2]));
	if (argc == 5 && !strcmp(argv[1], "ask"))
		return ask(argv[2], atoi(argv[3]), atof(argv[4]));
	fputs("usage: tcp-rr listen PORT | ask ADDRESS PORT SECONDS\n", stderr);
	return 2;
}
