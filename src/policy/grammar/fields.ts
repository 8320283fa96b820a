/** What the policy grammars share: names, metadata, addresses, and how a field that is known but not understood is refused. */
import { z } from 'zod';
import {
  addressBytes,
  addressFromBytes,
  datapathPrefixLength,
  isIpv4,
  type Prefix,
  parseAddress,
} from '../../model/address.ts';
import type { Enforcement } from '../rules.ts';

/** For refinements that look at several fields: they run although one of the fields is wrong, so that all problems are told. */
export const evenIfWrong = { when: () => true };

/** A field that the grammar's makers know and that is not understood here. It is never passed over in silence. */
export function refused(message: string) {
  return z
    .unknown()
    .superRefine((_, context) => {
      context.addIssue({ code: 'custom', message });
    })
    .optional();
}

/** Set by an API server, or for people: it has no say in what a policy means. */
export const passedOver = z.unknown().optional();

const OBJECT_NAME = /^(?=.{1,253}$)[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*$/;
const NAMESPACE_NAME = /^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$/;

const named = (pattern: RegExp) =>
  z.string().superRefine((text, context) => {
    if (!pattern.test(text)) {
      context.addIssue({ code: 'custom', message: 'not a Kubernetes name; use lower-case letters, digits and "-"' });
    }
  });

const enforcement = z.enum(['enforce', 'observe']);
/** `spec.enforcement` of our own kinds. */
export const enforcementField = enforcement.optional();

const OWN_ANNOTATIONS = 'countersign.dev/';
const ENFORCEMENT_ANNOTATION = 'countersign.dev/enforcement';

const annotations = (ownKind: boolean) =>
  z.record(z.string(), z.string()).superRefine((value, context) => {
    for (const [key, text] of Object.entries(value)) {
      const complain = (message: string) => context.addIssue({ code: 'custom', path: [key], message });
      if (!key.startsWith(OWN_ANNOTATIONS)) continue;
      if (key !== ENFORCEMENT_ANNOTATION) complain(`unknown annotation; use ${ENFORCEMENT_ANNOTATION}`);
      else if (ownKind) complain('of no effect on this kind; write spec.enforcement');
      else if (!enforcement.safeParse(text).success) complain('must be enforce or observe; correct it');
    }
  });

/** `ownKind`: one of countersign.dev, which says in its spec whether it is enforced. */
export function metadata(scope: { readonly namespaced: boolean; readonly ownKind: boolean }) {
  return z.strictObject({
    name: named(OBJECT_NAME),
    namespace: named(NAMESPACE_NAME)
      .superRefine((_, context) => {
        if (scope.namespaced) return;
        context.addIssue({ code: 'custom', message: 'a clusterwide policy has no namespace; remove it' });
      })
      .optional(),
    labels: z.record(z.string(), z.string()).optional(),
    annotations: annotations(scope.ownKind).optional(),
    generateName: refused('only an API server makes names; write metadata.name'),
    creationTimestamp: passedOver,
    deletionGracePeriodSeconds: passedOver,
    deletionTimestamp: passedOver,
    finalizers: passedOver,
    generation: passedOver,
    managedFields: passedOver,
    ownerReferences: passedOver,
    resourceVersion: passedOver,
    selfLink: passedOver,
    uid: passedOver,
  });
}

export function enforcementOf(annotations: Readonly<Record<string, string>> | undefined): Enforcement {
  const text = annotations?.[ENFORCEMENT_ANNOTATION];
  return text === 'observe' ? 'observe' : 'enforce';
}

/** What Cilium and Kubernetes read: bits behind the prefix may be set, and are cleared. */
export function parseCidr(text: string): Prefix | undefined {
  const match = /^([^/]+)\/(0|[1-9]\d{0,2})$/.exec(text);
  const address = match?.[1] === undefined ? undefined : parseAddress(match[1]);
  if (address === undefined) return undefined;
  const length = Number(match![2]);
  if (length > (isIpv4(address) ? 32 : 128)) return undefined;
  const bytes = addressBytes(address);
  for (let bit = datapathPrefixLength({ address, length }); bit < 128; bit++) {
    bytes[bit >> 3]! &= ~(0x80 >> (bit & 7));
  }
  return { address: addressFromBytes(isIpv4(address) ? bytes.subarray(12) : bytes), length };
}

/** As parseCidr, and an address alone stands for itself. */
export function parseCidrOrAddress(text: string): Prefix | undefined {
  const address = parseAddress(text);
  return address === undefined ? parseCidr(text) : { address, length: isIpv4(address) ? 32 : 128 };
}

const NOT_A_CIDR = 'not a CIDR; write an address, "/" and the length of the prefix, such as 10.0.0.0/8';

/** Checked here, parsed by parseCidr where the rule is made. */
export const cidrText = z.string().superRefine((text, context) => {
  if (parseCidr(text) === undefined) context.addIssue({ code: 'custom', message: NOT_A_CIDR });
});
export const cidrOrAddressText = z.string().superRefine((text, context) => {
  if (parseCidrOrAddress(text) === undefined) context.addIssue({ code: 'custom', message: NOT_A_CIDR });
});

export function isRecord(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

export function isFilled(value: unknown): boolean {
  return Array.isArray(value) && value.length > 0;
}
