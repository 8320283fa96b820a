// Loaded into an agent before its own modules (NODE_OPTIONS=--import): takes one safeguard out of the source, so that a test can
// show that it finds what the safeguard keeps away. COUNTERSIGN_WEAKEN names it. A safeguard that is not found ends the process.
import { registerHooks } from 'node:module';
import { type Change, SAFEGUARDS } from './safeguards.ts';

const name = process.env.COUNTERSIGN_WEAKEN ?? '';
const safeguard = (SAFEGUARDS as Readonly<Record<string, readonly Change[]>>)[name];
if (safeguard === undefined) throw new Error(`COUNTERSIGN_WEAKEN: no safeguard "${name}"`);
for (const { file, text, instead } of safeguard) {
  registerHooks({
    load(url, context, next) {
      const loaded = next(url, context);
      if (!url.endsWith(file)) return loaded;
      const source = String(loaded.source);
      if (source.split(text).length !== 2) throw new Error(`${file} does not have once: ${text}`);
      return { ...loaded, source: source.replace(text, instead) };
    },
  });
}
