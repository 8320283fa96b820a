import { defineConfig } from 'vitest/config';

// One project for each tier; ./dev test decides which of them can run here.
const tier = (name: string, extra: object = {}) => ({
  test: { name, include: [`test/${name}/**/*.test.ts`], pool: 'forks' as const, ...extra },
});

// biome-ignore lint/style/noDefaultExport: vitest reads the default export
export default defineConfig({
  test: {
    projects: [
      tier('unit', { testTimeout: 20_000 }),
      tier('bpf', { testTimeout: 60_000, fileParallelism: false }),
      tier('netns', { testTimeout: 120_000, hookTimeout: 120_000, fileParallelism: false }),
      tier('story', { testTimeout: 20_000 }),
    ],
  },
});
