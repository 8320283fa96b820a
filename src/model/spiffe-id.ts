/** SPIFFE IDs, trust domains and node names: the only door from untrusted text to the branded types (SPIFFE-ID standard, section 2). */
import { CountersignError, err, ok, type Result } from '../base/errors.ts';
import type { NodeName, SpiffeId, TrustDomain } from './ids.ts';

const SCHEME = 'spiffe://';
/** SPIFFE-ID 2.3: 2,048 bytes must be supported, longer ones should not be made. We take none. */
const MAX_ID_LENGTH = 2048;
/** SPIFFE-ID 2.1 with RFC 3986, section 3.2.2. */
const MAX_TRUST_DOMAIN_LENGTH = 255;
const MAX_NODE_NAME_LENGTH = 63;

export interface ParsedSpiffeId {
  readonly id: SpiffeId;
  readonly trustDomain: TrustDomain;
  /** "" or "/a/b". */
  readonly path: string;
}

/** An error is a sentence that names the broken rule and never repeats more of the text than one segment. */
export function parseSpiffeId(text: string): Result<ParsedSpiffeId, string> {
  if (text.length === 0) return err('a SPIFFE ID cannot be empty');
  if (text.length > MAX_ID_LENGTH) return err(`a SPIFFE ID has at most ${MAX_ID_LENGTH} bytes`);
  if (!text.startsWith(SCHEME)) return err('a SPIFFE ID begins with "spiffe://", in lower case');
  const slash = text.indexOf('/', SCHEME.length);
  const name = slash < 0 ? text.slice(SCHEME.length) : text.slice(SCHEME.length, slash);
  const trustDomain = parseTrustDomain(name);
  if (!trustDomain.ok) return trustDomain;
  const path = slash < 0 ? '' : text.slice(slash);
  const problem = problemOfPath(path);
  if (problem !== undefined) return err(problem);
  return ok({ id: text as SpiffeId, trustDomain: trustDomain.value, path });
}

/** For literals and for what was validated before. @throws CountersignError bad-input */
export function spiffeId(text: string): SpiffeId {
  const parsed = parseSpiffeId(text);
  if (!parsed.ok)
    throw new CountersignError('bad-input', `${JSON.stringify(text)} is not a SPIFFE ID: ${parsed.error}`);
  return parsed.value.id;
}

export function trustDomainOf(id: SpiffeId): TrustDomain {
  const slash = id.indexOf('/', SCHEME.length);
  return (slash < 0 ? id.slice(SCHEME.length) : id.slice(SCHEME.length, slash)) as TrustDomain;
}

/** "" for the ID of a trust domain itself. */
export function pathOf(id: SpiffeId): string {
  const slash = id.indexOf('/', SCHEME.length);
  return slash < 0 ? '' : id.slice(slash);
}

/** The bare name, as in "example.org". Neither a scheme, a port, user information nor percent-encoding is part of it. */
export function parseTrustDomain(text: string): Result<TrustDomain, string> {
  if (text.length === 0) return err('a trust domain cannot be empty');
  if (text.length > MAX_TRUST_DOMAIN_LENGTH) {
    return err(`a trust domain has at most ${MAX_TRUST_DOMAIN_LENGTH} bytes`);
  }
  for (let i = 0; i < text.length; i++) {
    const c = text.charCodeAt(i);
    if (!isLower(c) && !isDigit(c) && !isPunctuation(c)) {
      return err('a trust domain holds only lower-case letters, digits, dots, dashes and underscores');
    }
  }
  return ok(text as TrustDomain);
}

/** The SPIFFE ID of the trust domain itself, as a signing certificate carries it. */
export function trustDomainSpiffeId(trustDomain: TrustDomain): SpiffeId {
  return `${SCHEME}${trustDomain}` as SpiffeId;
}

export function nodeSpiffeId(trustDomain: TrustDomain, name: NodeName): SpiffeId {
  return `${SCHEME}${trustDomain}/node/${name}` as SpiffeId;
}

/** The node's name if this is the SPIFFE ID of a node of this project, else undefined. */
export function nodeNameOf(id: SpiffeId): NodeName | undefined {
  const path = pathOf(id);
  if (!path.startsWith('/node/')) return undefined;
  const name = parseNodeName(path.slice('/node/'.length));
  return name.ok ? name.value : undefined;
}

export function serverSpiffeId(trustDomain: TrustDomain): SpiffeId {
  return `${SCHEME}${trustDomain}/countersign/server` as SpiffeId;
}

/** One path segment: 1 to 63 of a-z, 0-9, "-" and ".", beginning and ending with a letter or digit. */
export function parseNodeName(text: string): Result<NodeName, string> {
  if (text.length === 0) return err('a node name cannot be empty');
  if (text.length > MAX_NODE_NAME_LENGTH) return err(`a node name has at most ${MAX_NODE_NAME_LENGTH} characters`);
  if (!/^[a-z0-9.-]*$/.test(text)) return err('a node name holds only lower-case letters, digits, dots and dashes');
  if (!/^[a-z0-9].*[a-z0-9]$|^[a-z0-9]$/.test(text)) return err('a node name begins and ends with a letter or a digit');
  return ok(text as NodeName);
}

/** SPIFFE-ID 2.2: segments of letters, digits, ".", "-" and "_"; none empty, "." or ".."; no trailing slash. */
function problemOfPath(path: string): string | undefined {
  if (path === '') return undefined;
  let segmentStart = 1;
  for (let i = 1; i <= path.length; i++) {
    const c = i === path.length ? SLASH : path.charCodeAt(i);
    if (c === SLASH) {
      const length = i - segmentStart;
      if (length === 0) {
        return i === path.length ? 'the path cannot end in a slash' : 'the path cannot hold an empty segment';
      }
      const dots = path.charCodeAt(segmentStart) === DOT && path.charCodeAt(i - 1) === DOT;
      if (dots && length <= 2) return 'the path cannot hold the segments "." and ".."';
      segmentStart = i + 1;
    } else if (!isLower(c) && !isUpper(c) && !isDigit(c) && !isPunctuation(c)) {
      return 'a path segment holds only letters, digits, dots, dashes and underscores';
    }
  }
  return undefined;
}

const SLASH = 0x2f;
const DOT = 0x2e;
const isLower = (c: number) => c >= 0x61 && c <= 0x7a;
const isUpper = (c: number) => c >= 0x41 && c <= 0x5a;
const isDigit = (c: number) => c >= 0x30 && c <= 0x39;
const isPunctuation = (c: number) => c === DOT || c === 0x2d || c === 0x5f;
