/** What is broken on purpose, so that the simulation is seen to find it. All off in a real run. */
export interface Faults {
  /** Fences are not written. */
  readonly noFences?: boolean;
  /** A deleted entry stays in the kernel for a while: the ack comes before it is gone. */
  readonly lateDelete?: boolean;
  /** The kernel does not look at leases. */
  readonly leaseUnchecked?: boolean;
  /** Sessions of the tunnel go on. */
  readonly noEndSession?: boolean;
}
