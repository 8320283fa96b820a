import { defineConfig } from 'vitest/config';

/** In the emulated machine everything takes this many times longer. */
const slow = Number(process.env.COUNTERSIGN_SLOW_MACHINE ?? 1);

// One project for each tier; ./dev test decides which of them can run here.
const tier = (name: string, timeoutMs: number, parallel: boolean) => ({
  test: {
    name,
    include: [`test/${name}/**/*.test.ts`],
    pool: 'forks' as const,
    fileParallelism: parallel,
    testTimeout: timeoutMs * slow,
    hookTimeout: timeoutMs * slow,
  },
});

// biome-ignore lint/style/noDefaultExport: vitest reads the default export
export default defineConfig({
  test: {
    projects: [
      tier('unit', 20_000, true),
      tier('bpf', 60_000, false),
      tier('netns', 120_000, false),
      tier('interop', 120_000, false),
      tier('story', 20_000, true),
    ],
  },
});
