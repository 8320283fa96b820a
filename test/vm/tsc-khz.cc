// Measures how fast this machine's time stamp counter counts, in kHz: the emulated machine has the same counter and nothing
// to measure it with that a busy host does not disturb.
#include <cstdio>
#include <ctime>
#include <x86intrin.h>

static double now_ns() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC_RAW, &t);
  return t.tv_sec * 1e9 + t.tv_nsec;
}

int main() {
  const double start_ns = now_ns();
  const unsigned long long start = __rdtsc();
  const timespec wait = {0, 200'000'000};
  nanosleep(&wait, nullptr);
  const double ns = now_ns() - start_ns;
  printf("%.0f\n", (__rdtsc() - start) / ns * 1e6);
}
