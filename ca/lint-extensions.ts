/** Which extensions a certificate about to be signed has, and how critical each is: what src/pki/extensions.ts passes over because a reader may. */

import { contextConstructed, type DerReader, readDer, TAG } from '../src/pki/der.ts';
import type { OidName } from '../src/pki/oids.ts';
import { oidNames } from '../src/pki/oids.ts';

export interface ExtensionList {
  /** In order, a critical one with a `!` behind it; undefined: one that is unknown here. */
  readonly names: readonly string[];
  /** GeneralNames in the subjectAltName. */
  readonly alternativeNames: number;
}

/** Undefined: it does not parse, which parseTbsCertificate says better. */
export function listExtensions(tbs: Buffer): ExtensionList | undefined {
  const read = readDer(tbs, tbs.length, (reader) => {
    const fields = reader.enter(TAG.sequence);
    while (fields.peek() !== contextConstructed(3)) fields.skip();
    const list = fields.enter(contextConstructed(3)).enter(TAG.sequence);
    fields.end();
    const names: string[] = [];
    let alternativeNames = 0;
    while (!list.atEnd) {
      const extension = list.enter(TAG.sequence);
      const name: OidName | undefined = oidNames.get(extension.oid());
      const critical = extension.peek() === TAG.boolean && extension.boolean();
      names.push(`${name ?? 'unknown'}${critical ? '!' : ''}`);
      if (name === 'subjectAltName') alternativeNames = count(extension.enter(TAG.octetString).enter(TAG.sequence));
    }
    return { names, alternativeNames };
  });
  return read.ok ? read.value : undefined;
}

function count(names: DerReader): number {
  let n = 0;
  for (; !names.atEnd; n++) names.skip();
  return n;
}
