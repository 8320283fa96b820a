/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What time is it? CLOCK_BOOTTIME, on which leases and proofs end. Reading it costs as much as a map lookup, so an
 * established flow whose end is far goes by a reading of the same tick. */
#ifndef CS_CLOCK_H
#define CS_CLOCK_H

#include "maps.h"

#define CS_SECOND 1000000000ull
/* How far from its end a verdict must be for the tick's reading to do. A tick is at most 10 ms; where a hypervisor stops
 * the CPU that counts them, another takes over after five (since Linux 5.17; 6.1 is the least we run on). */
#define CS_CLOCK_MARGIN (2 * CS_SECOND)

static __always_inline __u64 clock_exact(void)
{
	return bpf_ktime_get_boot_ns();
}

/* Not later than now, by less than CS_CLOCK_MARGIN: as of when the first packet of this tick came to this CPU. */
static __always_inline __u64 clock_of_tick(void)
{
	__u64 jiffies = bpf_jiffies64(), boot;
	__u32 zero = 0;
	struct cs_clock *seen = bpf_map_lookup_elem(&cs_clock, &zero);

	if (!seen)
		return clock_exact();
	boot = seen->boot_ns;
	if (seen->jiffies != jiffies || seen->sum != jiffies + boot) {
		boot = clock_exact();
		seen->boot_ns = boot;
		seen->jiffies = jiffies;
		seen->sum = jiffies + boot;
	}
	return boot;
}

/* True while `until` has not come, to the nanosecond. tick: from clock_of_tick(). */
static __always_inline bool clock_before(__u64 tick, __u64 until)
{
	return until > CS_CLOCK_MARGIN && (tick < until - CS_CLOCK_MARGIN || clock_exact() < until);
}

#endif
