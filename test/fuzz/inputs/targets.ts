/** Every parser of untrusted input that is tried, by name. */
import { bundles } from './bundle.ts';
import { x509 } from './certificate.ts';
import { requests } from './csr.ts';
import { derElements } from './der.ts';
import { tokens } from './jwt.ts';
import { spiffeIds } from './spiffe-id.ts';
import type { Target } from './target.ts';

export const targets: readonly Target[] = [spiffeIds, derElements, x509, requests, tokens, bundles];
