/** The environment in which an agent runs without one of its safeguards (weaken.ts), or writes down what it does (record.ts). */
import { join } from 'node:path';
import type { SafeguardName } from './safeguards.ts';

export interface Preloads {
  readonly without?: SafeguardName;
  /** Directory for the traces. */
  readonly traces?: string;
}

export function preloads({ without, traces }: Preloads): NodeJS.ProcessEnv {
  const imports = [...(without === undefined ? [] : ['weaken.ts']), ...(traces === undefined ? [] : ['record.ts'])];
  if (imports.length === 0) return {};
  return {
    ...(without === undefined ? {} : { COUNTERSIGN_WEAKEN: without }),
    ...(traces === undefined ? {} : { COUNTERSIGN_TRACES: traces }),
    NODE_OPTIONS: imports.map((file) => `--import ${join(import.meta.dirname, file)}`).join(' '),
  };
}
