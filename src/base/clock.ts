/** Time is passed in, so that tests can stand still and leap. */
export interface Clock {
  /** Wall clock, ms since the Unix epoch. For certificates and for people. */
  nowMs(): number;
  /** CLOCK_BOOTTIME in ns, the kernel programs' clock: it goes on while the machine sleeps. For leases and proofs. */
  bootNs(): bigint;
}
