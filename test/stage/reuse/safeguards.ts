/** What weaken.ts can take out of an agent: the one place in the source that keeps each safeguard, and what stands there without it. */
export interface Change {
  /** End of the module's URL. */
  readonly file: string;
  readonly text: string;
  readonly instead: string;
}

export const SAFEGUARDS: Readonly<Record<string, readonly Change[]>> = {
  fences: [
    { file: 'src/auth/vouch-host.ts', text: '    this.#fences.close(hosted.endpoint, [...shut]);\n', instead: '' },
  ],
};
