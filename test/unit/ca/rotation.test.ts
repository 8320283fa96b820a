import { mkdtempSync, readdirSync, renameSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import type { AuthorityKind, CaChange, CertificateAuthority } from '../../../ca/api.ts';
import { openUpstream } from '../../../ca/upstream/upstream.ts';
import { parseCertificate } from '../../../src/pki/certificate.ts';
import { validateJwtSvid } from '../../../src/pki/jwt.ts';
import { verifyX509Svid } from '../../../src/pki/verify.ts';
import { OpensslCas } from './openssl-ca.ts';
import { bundleOf, FRONTEND, NODE_A, TD, type TestClock, withCa, workloadRequest } from './support.ts';

const MINUTE = 60_000;
const HOUR = 60 * MINUTE;
/** Authorities of 24 hours as SPIRE's, JWT keys the same. */
const LIVES = { authorityTtlSeconds: 86_400, jwtKeyTtlSeconds: 86_400 };
const JWT_REQUEST = { spiffeId: FRONTEND, audience: ['db'], node: NODE_A, requester: NODE_A };
const KINDS: AuthorityKind[] = ['x509', 'jwt'];

const states = (ca: CertificateAuthority, kind: AuthorityKind) =>
  ca.authorities().flatMap((each) => (each.kind === kind ? [each.state] : []));
const idOf = (ca: CertificateAuthority, kind: AuthorityKind, state: string) =>
  ca.authorities().find((each) => each.kind === kind && each.state === state)!.id;

async function issued(ca: CertificateAuthority) {
  const outcome = await ca.issueWorkloadSvid(workloadRequest());
  if (!outcome.ok) throw new Error(outcome.error);
  return outcome.value;
}

async function token(ca: CertificateAuthority) {
  const outcome = await ca.issueJwtSvid(JWT_REQUEST);
  if (!outcome.ok) throw new Error(outcome.error);
  return outcome.value;
}

function signerIdOf(chain: readonly Buffer[]): string {
  const parsed = parseCertificate(chain[0]!);
  if (!parsed.ok) throw new Error(parsed.error);
  return parsed.value.authorityKeyId!.toString('hex');
}

async function later(ca: CertificateAuthority, clock: TestClock, ms: number) {
  clock.move(ms);
  await ca.upkeep();
}

describe.each(KINDS)('the %s authority', (kind) => {
  it('is prepared at half its life, activated a sixth before its end, and gone when nothing lives that it signed', async () => {
    await withCa(async ({ open, clock, directory }) => {
      const ca = await open(LIVES);
      const size = () => (kind === 'x509' ? ca.bundle().authorities.length : ca.bundle().jwtAuthorities.length);
      const sign = async () => (kind === 'x509' ? signerIdOf((await issued(ca)).chain) : (await token(ca)).keyId);
      const first = idOf(ca, kind, 'active');
      await later(ca, clock, 12 * HOUR - MINUTE);
      expect(states(ca, kind)).toEqual(['active']);
      const sequence = ca.bundle().sequence;
      await later(ca, clock, 2 * MINUTE);
      expect(states(ca, kind)).toEqual(['active', 'prepared']);
      expect(size()).toBe(2);
      expect(ca.bundle().sequence > sequence).toBe(true);
      await later(ca, clock, 8 * HOUR - 2 * MINUTE);
      expect(await sign()).toBe(first);
      await later(ca, clock, 2 * MINUTE);
      expect(states(ca, kind)).toEqual(['old', 'active']);
      expect(await sign()).toBe(idOf(ca, kind, 'active'));
      expect(await sign()).not.toBe(first);
      // what it signed last lives an hour, or five minutes
      const lastLife = kind === 'x509' ? HOUR : 5 * MINUTE;
      await later(ca, clock, lastLife - 2 * MINUTE);
      expect(states(ca, kind)).toEqual(['old', 'active']);
      expect(size()).toBe(2);
      await later(ca, clock, 3 * MINUTE);
      expect(states(ca, kind)).toEqual(['active']);
      expect(size()).toBe(1);
      const files = readdirSync(join(directory, 'keys')).filter((name) => name.startsWith(kind));
      expect(files).toHaveLength(1);
    });
  });

  it('is prepared once, whoever asks how often', async () => {
    await withCa(async ({ open }) => {
      const ca = await open();
      const [a, b] = await Promise.all([ca.prepare(kind), ca.prepare(kind)]);
      expect(a.id).toBe(b.id);
      expect(states(ca, kind)).toEqual(['active', 'prepared']);
    });
  });

  it('is the one that was prepared, or none', async () => {
    await withCa(async ({ open }) => {
      const ca = await open();
      await expect(ca.activate(kind)).rejects.toThrow(/no (x509|jwt) authority is prepared; see: countersign ca list/);
      const { id } = await ca.prepare(kind);
      await expect(ca.activate(kind, 'ab'.repeat(20))).rejects.toThrow(/no (x509|jwt) authority abab/);
      await expect(ca.activate(kind, idOf(ca, kind, 'active'))).rejects.toThrow(/is active, not prepared/);
      expect((await ca.activate(kind, id)).state).toBe('active');
    });
  });

  it('is neither tainted nor revoked while it signs', async () => {
    await withCa(async ({ open }) => {
      const ca = await open();
      const id = idOf(ca, kind, 'active');
      await expect(ca.taint(kind, id)).rejects.toThrow(/is active; activate another one first/);
      await expect(ca.revokeAuthority(kind, id, '')).rejects.toThrow(/is active; activate another one first/);
    });
  });

  it('stays in the bundle when it is tainted, and says so', async () => {
    await withCa(async ({ open }) => {
      const ca = await open();
      const old = idOf(ca, kind, 'active');
      await ca.prepare(kind);
      await ca.activate(kind);
      const { sequence } = ca.bundle();
      await ca.taint(kind, old);
      expect(ca.bundle().sequence > sequence).toBe(true);
      const { taintedKeyIds, authorities, jwtAuthorities } = ca.bundle();
      expect(authorities.length + jwtAuthorities.length).toBe(3);
      if (kind === 'x509') expect(taintedKeyIds.map((each) => each.toString('hex'))).toEqual([old]);
      else expect(jwtAuthorities.filter(({ tainted }) => tainted).map(({ keyId }) => keyId)).toEqual([old]);
      expect(ca.authorities().find(({ id }) => id === old)).toMatchObject({ state: 'old', tainted: true });
    });
  });

  it('leaves the bundle, and its key the disk, when it is revoked', async () => {
    await withCa(async ({ open, directory }) => {
      const ca = await open();
      const old = idOf(ca, kind, 'active');
      const [svid, jwt] = [await issued(ca), await token(ca)];
      await ca.prepare(kind);
      await ca.activate(kind);
      const told: CaChange[] = [];
      ca.onChange((change) => told.push(change));
      await ca.revokeAuthority(kind, old, 'keyCompromise');
      expect(states(ca, kind)).toEqual(['active']);
      expect(readdirSync(join(directory, 'keys')).filter((name) => name.startsWith(kind))).toHaveLength(1);
      const nowMs = svid.notBeforeMs + 20_000;
      const bundle = { trustDomain: TD, ...ca.bundle() };
      if (kind === 'x509') {
        expect(verifyX509Svid(svid.chain, bundle, nowMs).ok).toBe(false);
        expect(
          ca.isRevoked({
            spiffeId: FRONTEND,
            serial: svid.serial,
            node: NODE_A,
            notBeforeMs: nowMs,
            authorities: [old],
          }),
        ).toBe(true);
        expect(told.find(({ revocations = [] }) => revocations.length > 0)).toMatchObject({
          bundle: true,
          revocations: [{ what: { authority: old }, reason: 'keyCompromise' }],
        });
      } else {
        expect(validateJwtSvid(jwt.token, 'db', [bundle], nowMs)).toEqual({ ok: false, error: 'JWT_KEY_UNKNOWN' });
        expect(ca.revocations()).toEqual([]);
      }
      await expect(ca.revokeAuthority(kind, old, '')).rejects.toThrow(/no (x509|jwt) authority/);
    });
  });

  it('is where it was after a restart, in each state', async () => {
    await withCa(async ({ open }) => {
      const steps: ((ca: CertificateAuthority) => Promise<unknown>)[] = [
        (ca) => ca.prepare(kind),
        (ca) => ca.activate(kind),
        (ca) => ca.taint(kind, idOf(ca, kind, 'old')),
        (ca) => ca.revokeAuthority(kind, idOf(ca, kind, 'old'), ''),
      ];
      let ca = await open();
      await issued(ca);
      await token(ca);
      for (const step of steps) {
        await step(ca);
        const before = [ca.bundle(), ca.authorities(), ca.revocations()];
        ca.close();
        ca = await open();
        expect([ca.bundle(), ca.authorities(), ca.revocations()]).toEqual(before);
      }
    });
  });

  it('that was due while the server was down is published first, and signs when others had time to learn of it', async () => {
    await withCa(async ({ open, clock }) => {
      let ca = await open(LIVES);
      const first = idOf(ca, kind, 'active');
      ca.close();
      clock.move(21 * HOUR);
      ca = await open(LIVES);
      expect(states(ca, kind)).toEqual(['active', 'prepared']);
      await later(ca, clock, HOUR);
      expect(idOf(ca, kind, 'active')).toBe(first);
      // half of the three hours that were left
      await later(ca, clock, 31 * MINUTE);
      expect(states(ca, kind)).toEqual(['old', 'active']);
      expect(idOf(ca, kind, 'active')).not.toBe(first);
    });
  });

  it('that ended while the server was down is refused, as the clock may be wrong, and replaced at once if that is wanted', async () => {
    await withCa(async ({ open, clock, directory }) => {
      const ca = await open(LIVES);
      const first = idOf(ca, kind, 'active');
      ca.close();
      clock.move(40 * 24 * HOUR);
      const keys = readdirSync(join(directory, 'keys'));
      await expect(open(LIVES)).rejects.toThrow(
        /every signing key has ended; check the clock; .*ca\.replaceLostKeys: true/,
      );
      expect(readdirSync(join(directory, 'keys'))).toEqual(keys);
      clock.move(-40 * 24 * HOUR);
      const right = await open(LIVES);
      expect(idOf(right, kind, 'active')).toBe(first);
      right.close();
      clock.move(40 * 24 * HOUR);
      const again = await open({ ...LIVES, replaceLostKeys: true });
      expect(idOf(again, kind, 'active')).not.toBe(first);
      await later(again, clock, 2 * MINUTE);
      expect(states(again, kind)).toEqual(['active']);
      expect(idOf(again, kind, 'active')).not.toBe(first);
      expect((await again.issueWorkloadSvid(workloadRequest())).ok).toBe(true);
      expect((await again.issueJwtSvid(JWT_REQUEST)).ok).toBe(true);
    });
  });
});

describe('rotation', () => {
  it('goes on for years: everything that is issued verifies then and until it ends, and the bundle stays small', async () => {
    await withCa(async ({ open, clock }) => {
      const ca = await open(LIVES);
      let live: { chain: Buffer[]; notAfterMs: number }[] = [];
      const seen = new Set<string>();
      for (let step = 0; step < 250; step++) {
        await later(ca, clock, 37 * MINUTE);
        live = live.filter(({ notAfterMs }) => notAfterMs >= clock.nowMs());
        live.push(await issued(ca));
        for (const { chain } of live) expect(verifyX509Svid(chain, bundleOf(ca), clock.nowMs()).ok).toBe(true);
        expect(ca.bundle().authorities.length).toBeLessThanOrEqual(3);
        seen.add(idOf(ca, 'x509', 'active'));
      }
      expect(seen.size).toBeGreaterThan(6);
    });
  });

  it('grows the sequence with each change of the bundle, and never below the clock', async () => {
    await withCa(async ({ open, clock }) => {
      const ca = await open();
      let last = ca.bundle().sequence;
      expect(last >= BigInt(Math.floor(clock.nowMs() / 1000))).toBe(true);
      clock.move(-HOUR / 2);
      for (const act of [() => ca.prepare('x509'), () => ca.prepare('jwt')]) {
        await act().catch(() => {});
        expect(ca.bundle().sequence > last).toBe(true);
        last = ca.bundle().sequence;
      }
    });
  });

  it('tells what happened, also what happened before anybody listened', async () => {
    await withCa(async ({ open }) => {
      const ca = await open();
      const acts: string[] = [];
      ca.onChange((change) =>
        acts.push(...(change.acts ?? []).map(({ act, authority }) => `${act} ${authority.kind}`)),
      );
      expect(acts).toEqual(['prepared x509', 'activated x509', 'prepared jwt', 'activated jwt']);
      await ca.prepare('x509');
      await ca.activate('x509');
      expect(acts.slice(4)).toEqual(['prepared x509', 'activated x509']);
    });
  });

  it.each([
    ['ec-p256', 'ES256'],
    ['ec-p384', 'ES384'],
    ['rsa-3072', 'RS256'],
  ] as const)(
    'makes keys of the kinds that the settings name from then on: %s signs tokens by %s',
    async (jwtKeyType, alg) => {
      await withCa(async ({ open }) => {
        (await open()).close();
        const ca = await open({ keyType: 'ec-p384', jwtKeyType });
        for (const kind of KINDS) {
          await ca.prepare(kind);
          await ca.activate(kind);
        }
        expect(
          ca
            .authorities()
            .map(({ kind, state, keyType }) => `${kind} ${state} ${keyType}`)
            .sort(),
        ).toEqual([`jwt active ${jwtKeyType}`, 'jwt old ec-p256', 'x509 active ec-p384', 'x509 old ec-p256']);
        const { chain, notBeforeMs } = await issued(ca);
        expect(verifyX509Svid(chain, bundleOf(ca), notBeforeMs + 20_000).ok).toBe(true);
        const jwt = await token(ca);
        const header = JSON.parse(Buffer.from(jwt.token.split('.')[0]!, 'base64url').toString());
        expect(header).toEqual({ alg, kid: jwt.keyId, typ: 'JWT' });
        expect(validateJwtSvid(jwt.token, 'db', [{ trustDomain: TD, ...ca.bundle() }], jwt.issuedAtMs)).toMatchObject({
          ok: true,
        });
      });
    },
  );

  it('waits for a clock that was set back before a new authority', async () => {
    await withCa(async ({ open, clock }) => {
      const ca = await open();
      const active = idOf(ca, 'x509', 'active');
      clock.move(HOUR);
      await ca.prepare('x509');
      clock.move(-HOUR / 2);
      await expect(ca.activate('x509')).rejects.toThrow(/not valid yet; check the clock/);
      const svid = await issued(ca);
      expect(signerIdOf(svid.chain)).toBe(active);
    });
  });

  it('issues nothing for an authority that is closed', async () => {
    await withCa(async ({ open }) => {
      const ca = await open();
      ca.close();
      await expect(ca.prepare('x509')).rejects.toThrow(/closed/);
      await expect(ca.issueJwtSvid(JWT_REQUEST)).rejects.toThrow(/closed/);
    });
  });
});

describe('below an upstream authority', () => {
  it('rotation changes the intermediate and not the root; a revoked one leaves a last CRL until what it signed has ended', async () => {
    await withCa(async ({ open, clock, directory }) => {
      clock.move(Date.now() - clock.nowMs());
      const { certFile, keyFile } = new OpensslCas(mkdtempSync(join(directory, 'upstream-'))).make('root');
      const upstream = openUpstream({ type: 'disk', certFile, keyFile }, TD, clock);
      const ca = await open({ upstream, ...LIVES });
      const [root] = ca.bundle().authorities;
      const old = await issued(ca);
      expect(old.chain).toHaveLength(2);
      await ca.prepare('x509');
      await ca.activate('x509');
      const fresh = await issued(ca);
      expect(fresh.chain[1]).not.toEqual(old.chain[1]);
      expect(ca.bundle().authorities).toEqual([root]);
      for (const { chain } of [old, fresh]) expect(verifyX509Svid(chain, bundleOf(ca), clock.nowMs()).ok).toBe(true);
      const id = idOf(ca, 'x509', 'old');
      await ca.revokeAuthority('x509', id, 'keyCompromise');
      expect(states(ca, 'x509')).toEqual(['revoked', 'active']);
      expect(readdirSync(join(directory, 'keys')).filter((name) => name.startsWith('x509'))).toHaveLength(1);
      expect(
        ca.isRevoked({ spiffeId: FRONTEND, serial: '', node: NODE_A, notBeforeMs: clock.nowMs(), authorities: [id] }),
      ).toBe(true);
      // the serial number as the list has it: what the root still leads to is told revoked by it
      const listed = () => ca.crls().filter((crl) => crl.includes(Buffer.from(old.serial, 'hex')));
      expect(ca.crls()).toHaveLength(2);
      expect(listed()).toHaveLength(1);
      await later(ca, clock, HOUR + 2 * MINUTE);
      expect(states(ca, 'x509')).toEqual(['active']);
      expect(ca.crls()).toHaveLength(1);
    });
  });

  it('that cannot sign, the active one goes on, nothing is left behind, and what was due is done when it can', async () => {
    await withCa(async ({ open, clock, directory }) => {
      clock.move(Date.now() - clock.nowMs());
      const { certFile, keyFile } = new OpensslCas(mkdtempSync(join(directory, 'upstream-'))).make('root');
      const upstream = openUpstream({ type: 'disk', certFile, keyFile }, TD, clock);
      const ca = await open({ upstream, ...LIVES });
      renameSync(keyFile, `${keyFile}.away`);
      clock.move(13 * HOUR);
      await expect(ca.upkeep()).rejects.toThrow(/root\.key/);
      expect(states(ca, 'x509')).toEqual(['active']);
      // it needs no upstream
      expect(states(ca, 'jwt')).toEqual(['active', 'prepared']);
      expect(readdirSync(join(directory, 'keys')).filter((name) => name.startsWith('x509'))).toHaveLength(1);
      expect(verifyX509Svid((await issued(ca)).chain, bundleOf(ca), clock.nowMs()).ok).toBe(true);
      // a start does not wait for it either
      ca.close();
      const errors: string[] = [];
      const again = await open({ upstream, ...LIVES, onError: ({ message }) => errors.push(message) });
      expect(errors.join()).toMatch(/root\.key/);
      expect((await issued(again)).chain).toHaveLength(2);
      renameSync(`${keyFile}.away`, keyFile);
      await again.upkeep();
      expect(states(again, 'x509')).toEqual(['active', 'prepared']);
    });
  });
});

describe('a JWT-SVID', () => {
  it('says who, for whom and until when, and is in the ledger', async () => {
    await withCa(async ({ open, clock }) => {
      const ca = await open();
      const outcome = await ca.issueJwtSvid({
        ...JWT_REQUEST,
        audience: ['db', 'cache'],
        issuer: 'https://oidc.example.org',
      });
      if (!outcome.ok) throw new Error(outcome.error);
      const { token: text, issuedAtMs, expiresAtMs } = outcome.value;
      expect(issuedAtMs).toBe(Math.floor(clock.nowMs() / 1000) * 1000);
      expect(expiresAtMs - issuedAtMs).toBe(300_000);
      const claims = JSON.parse(Buffer.from(text.split('.')[1]!, 'base64url').toString());
      expect(claims).toMatchObject({
        sub: FRONTEND,
        aud: ['db', 'cache'],
        iat: issuedAtMs / 1000,
        exp: expiresAtMs / 1000,
      });
      expect(claims.iss).toBe('https://oidc.example.org');
      expect(claims.jti).toMatch(/^[0-9a-f]{32}$/);
    });
  });

  it.each<[string, object, string]>([
    ['of another trust domain', { spiffeId: 'spiffe://other.org/a' }, 'CERT_TRUST_DOMAIN'],
    ['for a node of another trust domain', { node: 'spiffe://other.org/node/a' }, 'CERT_TRUST_DOMAIN'],
    ['without a path', { spiffeId: 'spiffe://example.org' }, 'CERT_NO_PATH'],
  ])('%s is refused', async (_, request, error) => {
    await withCa(async ({ open }) => {
      const ca = await open();
      expect(await ca.issueJwtSvid({ ...JWT_REQUEST, ...request })).toEqual({ ok: false, error });
    });
  });

  it.each<[string, string[]]>([
    ['no audience', []],
    ['an empty one', ['db', '']],
    ['an endless one', ['x'.repeat(2049)]],
    ['too many', Array.from({ length: 17 }, (_, i) => `a${i}`)],
  ])('for %s is refused', async (_, audience) => {
    await withCa(async ({ open }) => {
      const ca = await open();
      await expect(ca.issueJwtSvid({ ...JWT_REQUEST, audience })).rejects.toThrow(/^audience: /);
    });
  });

  it('of what was revoked is refused, by SPIFFE ID and by node', async () => {
    await withCa(async ({ open, clock }) => {
      const ca = await open();
      ca.revoke({ spiffeId: FRONTEND }, '');
      expect(await ca.issueJwtSvid(JWT_REQUEST)).toEqual({ ok: false, error: 'ISSUE_REVOKED' });
      clock.move(2000);
      expect((await ca.issueJwtSvid(JWT_REQUEST)).ok).toBe(true);
    });
  });

  it('never outlives its key, and the longest life is an hour', async () => {
    await withCa(async ({ open, clock }) => {
      const ca = await open({ jwtKeyTtlSeconds: 600 });
      const long = await ca.issueJwtSvid({ ...JWT_REQUEST, ttlSeconds: 86_400 });
      if (!long.ok) throw new Error(long.error);
      expect(long.value.expiresAtMs - clock.nowMs()).toBe(600_000);
    });
  });
});
