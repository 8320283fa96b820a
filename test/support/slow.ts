/** How many times slower than a real machine this one is: the emulated one says so. Waits are multiplied by it, demands never. */
export const SLOW = Number(process.env.COUNTERSIGN_SLOW_MACHINE ?? 1);
