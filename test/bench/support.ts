/** What a benchmark is, for main.ts that runs it. */

/** One JSON line on stdout. `floor` is what the value cannot beat, `rival` what it is compared with; both measured in the same run. */
export interface BenchResult {
  readonly name: string;
  readonly value: number;
  readonly unit: string;
  readonly floor?: { readonly name: string; readonly value: number };
  readonly rival?: { readonly name: string; readonly value: number };
  readonly ratio?: number;
  readonly target?: string;
  readonly ok?: boolean;
}

export interface Bench {
  readonly name: string;
  run(emit: (result: BenchResult) => void, progress: (line: string) => void): Promise<void>;
}
