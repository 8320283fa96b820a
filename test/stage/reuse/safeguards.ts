/** What weaken.ts can take out of an agent: the one place in the source that keeps each safeguard, and what stands there without it. */
export interface Change {
  /** End of the module's URL. */
  readonly file: string;
  readonly text: string;
  readonly instead: string;
}

export const SAFEGUARDS = {
  fences: [
    { file: 'src/auth/vouch-host.ts', text: '    this.#fences.close(hosted.endpoint, [...shut]);\n', instead: '' },
  ],
  drain: [
    {
      file: 'src/auth/vouch-drain.ts',
      text: '    return fromNs + nsOfMs(this.#options.drainMs) - this.#options.clock.bootNs();\n',
      instead: '    return 0n;\n',
    },
    {
      file: 'src/encryption/manager.ts',
      text: '    return this.#options.tunnel.endSession(node, this.ready(node));\n',
      instead: '    return Promise.resolve();\n',
    },
  ],
} satisfies Readonly<Record<string, readonly Change[]>>;

export type SafeguardName = keyof typeof SAFEGUARDS;
