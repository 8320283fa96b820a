import { execFileSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { makeAuthority } from '../../../ca/authority.ts';
import { Issuance } from '../../../ca/issuance.ts';
import { SoftwareKey } from '../../../ca/keys/software-key.ts';
import { Ledger } from '../../../ca/ledger.ts';
import { planWorkload } from '../../../ca/profile.ts';
import { signerOf } from '../../../ca/signer.ts';
import { openStore } from '../../../ca/store.ts';
import { spiffeId } from '../../../src/model/spiffe-id.ts';
import { parseCertificate } from '../../../src/pki/certificate.ts';
import { createCsr } from '../../../src/pki/csr.ts';
import { generateKey, privateKeyPem, publicKeyDer } from '../../../src/pki/keys.ts';
import { OID } from '../../../src/pki/oids.ts';
import { encodePem } from '../../../src/pki/pem.ts';
import { verifyX509Svid } from '../../../src/pki/verify.ts';
import { bundleOf, FRONTEND, NAME_A, NODE_A, START, TD, withCa, workloadRequest } from './support.ts';

const HOUR = 3_600_000;

function leafOf(issued: { chain: Buffer[] }) {
  const parsed = parseCertificate(issued.chain[0]!);
  if (!parsed.ok) throw new Error(parsed.error);
  return parsed.value;
}

describe('an issued X.509-SVID', () => {
  it('of a workload verifies, is bound to its node and holds the key that was asked for', async () => {
    await withCa(async ({ open }) => {
      const ca = await open();
      const key = generateKey();
      const outcome = await ca.issueWorkloadSvid({
        ...workloadRequest(createCsr(key)),
        dnsNames: ['shop.example.org'],
      });
      if (!outcome.ok) throw new Error(outcome.error);
      const issued = outcome.value;
      const verified = verifyX509Svid(issued.chain, bundleOf(ca), START);
      expect(verified).toMatchObject({ ok: true, value: { spiffeId: FRONTEND } });
      const leaf = leafOf(issued);
      expect(leaf).toMatchObject({
        nodeBinding: NODE_A,
        nodeIncarnation: undefined,
        dnsNames: ['shop.example.org'],
        extKeyUsage: [OID.serverAuth, OID.clientAuth],
        notBeforeMs: START - 10_000,
        notAfterMs: START + HOUR,
      });
      expect(leaf.spki).toEqual(publicKeyDer(key));
      expect(issued).toMatchObject({ serial: leaf.serial, notBeforeMs: leaf.notBeforeMs, notAfterMs: leaf.notAfterMs });
      expect(issued.chain).toHaveLength(1);
    });
  });

  it('of a node names it and carries its incarnation', async () => {
    await withCa(async ({ open }) => {
      const ca = await open();
      const csr = createCsr(generateKey());
      const outcome = await ca.issueNodeSvid({ csr, name: NAME_A, incarnation: 7n, requester: 'join-token' });
      expect(outcome).toMatchObject({ ok: true, value: { spiffeId: NODE_A } });
      if (!outcome.ok) return;
      expect(leafOf(outcome.value)).toMatchObject({ nodeIncarnation: 7n, nodeBinding: undefined });
      expect(verifyX509Svid(outcome.value.chain, bundleOf(ca), START).ok).toBe(true);
    });
  });

  it('of the server is the server’s', async () => {
    await withCa(async ({ open }) => {
      const ca = await open();
      const outcome = await ca.issueServerSvid({ csr: createCsr(generateKey()), requester: 'self' });
      expect(outcome).toMatchObject({ ok: true, value: { spiffeId: 'spiffe://example.org/countersign/server' } });
    });
  });

  it('is accepted by openssl verify -x509_strict for servers and clients', async () => {
    await withCa(async ({ open, directory }) => {
      const ca = await open();
      const requests = [
        ca.issueWorkloadSvid(workloadRequest()),
        ca.issueNodeSvid({ csr: createCsr(generateKey()), name: NAME_A, incarnation: 1n, requester: 'x' }),
        ca.issueServerSvid({ csr: createCsr(generateKey()), requester: 'self' }),
      ];
      const root = join(directory, 'root.pem');
      writeFileSync(root, encodePem('CERTIFICATE', ca.bundle().authorities[0]!));
      for (const outcome of await Promise.all(requests)) {
        if (!outcome.ok) throw new Error(outcome.error);
        const leaf = join(directory, 'leaf.pem');
        writeFileSync(leaf, encodePem('CERTIFICATE', outcome.value.chain[0]!));
        for (const purpose of ['sslserver', 'sslclient']) {
          const args = [
            'verify',
            '-x509_strict',
            '-attime',
            String(START / 1000),
            '-purpose',
            purpose,
            '-CAfile',
            root,
            leaf,
          ];
          expect(execFileSync('openssl', args, { encoding: 'utf8', stdio: 'pipe' })).toMatch(/: OK$/m);
        }
      }
    });
  });

  it('has a serial number of its own', async () => {
    await withCa(async ({ open }) => {
      const ca = await open();
      const request = workloadRequest();
      const outcomes = await Promise.all(Array.from({ length: 300 }, () => ca.issueWorkloadSvid(request)));
      const serials = new Set(outcomes.map((outcome) => (outcome.ok ? outcome.value.serial : '')));
      expect(serials.size).toBe(300);
      expect(serials.has('')).toBe(false);
    });
  });
});

describe('how long it holds', () => {
  it.each([
    ['the wish of the entry', { ttlSeconds: 60 }, 60],
    ['no longer than the limit', { ttlSeconds: 10 * 86_400 }, 86_400],
    ['an hour without a wish', {}, 3600],
  ])('is %s', async (_, wish, seconds) => {
    await withCa(async ({ open }) => {
      const outcome = await (await open()).issueWorkloadSvid({ ...workloadRequest(), ...wish });
      expect(outcome).toMatchObject({ ok: true, value: { notAfterMs: START + seconds * 1000 } });
    });
  });

  it('is no longer than its authority', async () => {
    await withCa(async ({ open, clock }) => {
      const ca = await open({ authorityTtlSeconds: 86_400 });
      clock.move(23.5 * HOUR);
      const outcome = await ca.issueWorkloadSvid(workloadRequest());
      expect(outcome).toMatchObject({ ok: true, value: { notAfterMs: START + 24 * HOUR } });
      clock.move(HOUR);
      await expect(ca.issueWorkloadSvid(workloadRequest())).rejects.toThrow(/the validity is not empty/);
    });
  });
});

describe('what is refused', () => {
  it('a request that does not verify, without harm to those beside it', async () => {
    await withCa(async ({ open }) => {
      const ca = await open();
      const bent = createCsr(generateKey());
      bent[bent.length - 1]! ^= 1;
      const outcomes = await Promise.all([
        ca.issueWorkloadSvid(workloadRequest()),
        ca.issueWorkloadSvid(workloadRequest(bent)),
        ca.issueWorkloadSvid(workloadRequest(Buffer.from('garbage'))),
        ca.issueWorkloadSvid(workloadRequest()),
      ]);
      expect(outcomes.map((outcome) => (outcome.ok ? 'issued' : outcome.error))).toEqual([
        'issued',
        'ISSUE_CSR_INVALID',
        'ISSUE_CSR_INVALID',
        'issued',
      ]);
    });
  });

  it('an identity or a node of another trust domain, and one without a path', async () => {
    await withCa(async ({ open }) => {
      const ca = await open();
      const foreign = spiffeId('spiffe://other.org/a');
      const request = workloadRequest();
      expect(await ca.issueWorkloadSvid({ ...request, spiffeId: foreign })).toEqual({
        ok: false,
        error: 'CERT_TRUST_DOMAIN',
      });
      expect(await ca.issueWorkloadSvid({ ...request, node: foreign })).toEqual({
        ok: false,
        error: 'CERT_TRUST_DOMAIN',
      });
      const bare = spiffeId('spiffe://example.org');
      expect(await ca.issueWorkloadSvid({ ...request, spiffeId: bare })).toEqual({ ok: false, error: 'CERT_NO_PATH' });
    });
  });

  it.each(['*.example.org', 'a b', '-a', 'a..b', 'a'.repeat(64)])('the DNS name %j, by lint', async (dnsName) => {
    await withCa(async ({ open }) => {
      const ca = await open();
      await expect(ca.issueWorkloadSvid({ ...workloadRequest(), dnsNames: [dnsName] })).rejects.toThrow(/DNS names/);
    });
  });

  it('anything of the request but its key: wishes for a CA and another name do not come in', async () => {
    await withCa(async ({ open, directory }) => {
      const ca = await open();
      const keyPath = join(directory, 'workload.key');
      writeFileSync(keyPath, privateKeyPem(generateKey()), { mode: 0o600 });
      const wishes = [
        'basicConstraints=critical,CA:TRUE',
        'subjectAltName=URI:spiffe://example.org/admin',
        'keyUsage=keyCertSign',
      ];
      const args = ['req', '-new', '-key', keyPath, '-subj', '/CN=admin', '-outform', 'DER'];
      const csr = execFileSync('openssl', [...args, ...wishes.flatMap((wish) => ['-addext', wish])]);
      const outcome = await ca.issueWorkloadSvid(workloadRequest(csr));
      if (!outcome.ok) throw new Error(outcome.error);
      expect(leafOf(outcome.value)).toMatchObject({ isCa: false, spiffeId: FRONTEND, uriSanCount: 1, keyUsage: 1 });
      expect(outcome.value.chain[0]!.includes('admin')).toBe(false);
    });
  });
});

describe('the ledger', () => {
  it('has the row of an SVID when the SVID is there, also after a restart', async () => {
    await withCa(async ({ open }) => {
      const ca = await open();
      const outcome = await ca.issueWorkloadSvid(workloadRequest());
      if (!outcome.ok) throw new Error(outcome.error);
      const row = {
        serial: outcome.value.serial,
        profile: 'workload',
        spiffeId: FRONTEND,
        node: NODE_A,
        notAfterMs: outcome.value.notAfterMs,
        issuedMs: START,
        requester: NODE_A,
      };
      expect(ca.svidBySerial(outcome.value.serial)).toMatchObject(row);
      ca.close();
      expect((await open()).listSvids()).toMatchObject([row]);
    });
  });

  it('lists what is live, newest first', async () => {
    await withCa(async ({ open, clock }) => {
      const ca = await open();
      await ca.issueWorkloadSvid({ ...workloadRequest(), ttlSeconds: 60 });
      await ca.issueServerSvid({ csr: createCsr(generateKey()), requester: 'self' });
      expect(ca.listSvids().map((row) => row.profile)).toEqual(['server', 'workload']);
      clock.move(61_000);
      expect(ca.listSvids().map((row) => row.profile)).toEqual(['server']);
    });
  });

  it('forgets an SVID thirty days after its end', async () => {
    await withCa(async ({ open, clock }) => {
      const ca = await open();
      const outcome = await ca.issueWorkloadSvid(workloadRequest());
      if (!outcome.ok) throw new Error(outcome.error);
      clock.move(31 * 24 * HOUR);
      await ca.issueWorkloadSvid(workloadRequest());
      expect(ca.svidBySerial(outcome.value.serial)).toBeUndefined();
      expect(ca.listSvids()).toHaveLength(1);
    });
  });

  it('that cannot be written keeps every SVID of its turn from leaving', async () => {
    await withCa(async ({ directory }) => {
      const key = new SoftwareKey('authority', generateKey());
      const { certificate } = await makeAuthority(key, TD, { notBeforeMs: START, notAfterMs: START + 2 * HOUR });
      const store = openStore(join(directory, 'other.db'));
      const ledger = new Ledger(store, START);
      const { issuer } = signerOf(key, certificate);
      const issuance = new Issuance(
        () => ({ signer: { key, issuer: issuer! }, id: 'a1', chain: [] }),
        ledger,
        () => START,
      );
      const plan = () => planWorkload(FRONTEND, NODE_A, [], { notBeforeMs: START, notAfterMs: START + HOUR });
      store.close();
      const asked = [1, 2].map(() => issuance.issue(createCsr(generateKey()), plan, NODE_A));
      await Promise.all(asked.map((outcome) => expect(outcome).rejects.toThrow(/ledger could not be written/)));
    });
  });

  it('finishes what was asked for when it is closed, and takes nothing more', async () => {
    await withCa(async ({ open }) => {
      const ca = await open();
      const asked = Array.from({ length: 100 }, () => ca.issueWorkloadSvid(workloadRequest()));
      ca.close();
      expect((await Promise.all(asked)).every((outcome) => outcome.ok)).toBe(true);
      await expect(ca.issueWorkloadSvid(workloadRequest())).rejects.toThrow(/closed/);
      expect((await open()).listSvids()).toHaveLength(100);
    });
  });
});
