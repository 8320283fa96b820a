/** One step of the tour: what it shows, and what it measured. */
import type { Stage } from '../stage.ts';

export type Figures = Record<string, string | number | boolean>;

export interface StepResult {
  readonly ok: boolean;
  readonly figures: Figures;
  /** Sentences for a person: what was seen. */
  readonly saw: readonly string[];
}

export interface Step {
  readonly name: string;
  /** One sentence: what is being shown. */
  readonly shows: string;
  /** Says to `progress` what it is at, where it takes more than two seconds. */
  readonly run: (stage: Stage, progress: (what: string) => void) => Promise<StepResult>;
}

/** Collects what a step demands; the step is ok when every demand holds, and says which did not. */
export class Demands {
  readonly #unmet: string[] = [];

  that(holds: boolean, sentence: string): void {
    if (!holds) this.#unmet.push(sentence);
  }

  result(figures: Figures, saw: readonly string[]): StepResult {
    if (this.#unmet.length === 0) return { ok: true, figures, saw };
    return {
      ok: false,
      figures: { ...figures, unmet: this.#unmet.join('; ') },
      saw: [...saw, ...this.#unmet.map((u) => `NOT SO: ${u}`)],
    };
  }
}

export const round = (value: number, digits = 2): number => Number(value.toFixed(digits));
