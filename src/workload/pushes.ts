/** All open streams, told of a change a few at a time, so that a thousand of them do not hold up everything else in this process. */
import type { Refusal } from './responses.ts';
import type { StateStream } from './state-stream.ts';

/** Streams told before other work has its turn. */
const AT_ONCE = 16;

export interface Pushes {
  readonly streams: number;
  add(stream: StateStream): void;
  remove(stream: StateStream): void;
  /** Each stream hears of it once, whatever changes meanwhile. */
  changed(): void;
  end(refusal: Refusal): void;
}

export function createPushes(): Pushes {
  const streams = new Set<StateStream>();
  let waiting = new Set<StateStream>();
  let telling = false;

  const tell = () => {
    let told = 0;
    for (const stream of waiting) {
      if (told++ === AT_ONCE) break;
      waiting.delete(stream);
      stream.changed();
    }
    telling = waiting.size > 0;
    if (telling) setImmediate(tell);
  };
  return {
    get streams() {
      return streams.size;
    },
    add: (stream) => void streams.add(stream),
    remove(stream) {
      streams.delete(stream);
      waiting.delete(stream);
    },
    changed() {
      waiting = new Set(streams);
      if (!telling) tell();
    },
    end(refusal) {
      for (const stream of [...streams]) stream.end(refusal);
    },
  };
}
