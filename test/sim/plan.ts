/** What a schedule does and when, drawn from its seed before anything runs, so that it can be printed and read. */
import type { AuthSettings } from '../../src/auth/ports.ts';
import type { IpAddress, SecurityIdentity } from '../../src/model/ids.ts';
import { IDENTITIES, NODES } from './material.ts';
import { Random } from './random.ts';

export type Op =
  | {
      readonly kind: 'birth';
      readonly uid: number;
      readonly node: string;
      readonly ip: IpAddress;
      readonly identity: SecurityIdentity;
    }
  | { readonly kind: 'death'; readonly uid: number }
  | {
      readonly kind:
        | 'kill'
        | 'start'
        | 'reboot'
        | 'resume'
        | 'age-sessions'
        | 'snapshot'
        | 'restore'
        | 'attest'
        | 'redial';
      readonly node: string;
    }
  | { readonly kind: 'pause'; readonly node: string }
  | { readonly kind: 'slip'; readonly node: string; readonly ms: number }
  | { readonly kind: 'cut'; readonly a: string; readonly b: string }
  | {
      readonly kind: 'partition' | 'heal';
      readonly a: string;
      readonly b: string;
      readonly what: 'both' | 'channel' | 'tunnel';
    }
  | { readonly kind: 'revoke'; readonly identity: SecurityIdentity }
  | {
      readonly kind: 'policy';
      readonly pair: readonly [SecurityIdentity, SecurityIdentity];
      readonly as: 'required' | 'free' | 'denied';
    }
  | { readonly kind: 'burst'; readonly from: number; readonly to: number; readonly packets: number };

export interface Step {
  readonly atMs: number;
  readonly op: Op;
}

export interface Plan {
  readonly seed: number;
  /** calm: births and deaths, no faults: liveness is demanded within 2 s. */
  readonly profile: 'calm' | 'mild' | 'wild';
  readonly nodes: readonly string[];
  readonly settings: Pick<AuthSettings, 'leaseMs' | 'drainMs' | 'preAuthentication'>;
  /** Longest delay of a frame, ms. */
  readonly slowestFrameMs: number;
  /** Longest delay of a datagram, ms: above the drain it is an attacker's. */
  readonly slowestDatagramMs: number;
  readonly loss: number;
  readonly slowQueues: boolean;
  readonly fullCrypto: boolean;
  /** Pairs that policy requires are proven before their first packet. */
  readonly preauthenticates: boolean;
  readonly required: readonly (readonly [SecurityIdentity, SecurityIdentity])[];
  readonly denied: readonly (readonly [SecurityIdentity, SecurityIdentity])[];
  readonly steps: readonly Step[];
  /** Is liveness demanded after the faults? */
  readonly demandsLife: boolean;
  /** Faults are over: everything heals here, and liveness is demanded at `endMs`. */
  readonly healMs: number;
  readonly endMs: number;
}

const IPS = ['10.0.0.1', '10.0.0.2', '10.0.0.3', '10.0.0.4'].map((ip) => ip as IpAddress);
/** Schedules of which every pair is proven with real signatures. */
export const FULL_CRYPTO_EVERY = 40;

/** Schedules that go on until everything must live again. */
const LIFE_EVERY = 20;

interface Life {
  readonly uid: number;
  readonly node: string;
  readonly ip: IpAddress;
  readonly identity: SecurityIdentity;
  readonly bornMs: number;
  diedMs: number | undefined;
}

export function planOf(seed: number): Plan {
  const random = new Random(seed, 1);
  const profile = random.pick(['calm', 'mild', 'mild', 'wild', 'wild'] as const);
  const nodes = random.chance(0.7) ? NODES.slice(0, 2) : [...NODES];
  const demandsLife = seed % LIFE_EVERY === 0;
  const leaseMs = demandsLife ? 10_000 : random.pick([3_000, 3_000, 3_000, 10_000, 30_000]);
  const activeMs = random.between(1.5, 4) * Math.min(leaseMs, 4_000);
  const lives: Life[] = [];
  const steps: Step[] = [];
  const add = (atMs: number, op: Op) => steps.push({ atMs, op });
  const homes = new Map<IpAddress, string>();
  const count = random.chance(0.5) ? 2 : 3;
  const ips = IPS.slice(0, count);
  let uid = 0;

  const birth = (atMs: number, ip: IpAddress, node: string, identity: SecurityIdentity): Life => {
    const life: Life = { uid: ++uid, node, ip, identity, bornMs: atMs, diedMs: undefined };
    lives.push(life);
    add(atMs, { kind: 'birth', uid: life.uid, node, ip, identity });
    return life;
  };
  const death = (atMs: number, life: Life) => {
    life.diedMs = atMs;
    add(atMs, { kind: 'death', uid: life.uid });
  };

  // The first owners; then each address changes hands a few times.
  ips.forEach((ip, i) => {
    const node = i < nodes.length ? nodes[i]! : random.pick(nodes);
    homes.set(ip, node);
    let now = birth(random.between(0, 800), ip, node, random.pick(IDENTITIES));
    let at = now.bornMs;
    const changes = random.int(profile === 'calm' ? 3 : 4);
    for (let n = 0; n < changes; n++) {
      at += random.between(0.1, 0.9) * (activeMs / (changes + 1)) + (profile === 'calm' ? 2_600 : 0);
      death(at, now);
      const moves = random.chance(0.4);
      const next = moves ? random.pick(nodes) : homes.get(ip)!;
      homes.set(ip, next);
      const gap = random.chance(0.7) ? random.between(0, 30) : random.between(30, 3_000);
      at += gap;
      now = birth(at, ip, next, random.pick(IDENTITIES));
    }
  });

  const changedMs = Math.max(...steps.map((step) => step.atMs), activeMs);
  if (profile !== 'calm') faults(random, profile, nodes, changedMs, add);
  // Nothing fails any more, and nobody comes back from the dead, from here on.
  const healMs = Math.max(...steps.map((step) => step.atMs)) + random.between(0, 0.3) * leaseMs;
  bursts(random, lives, healMs, profile === 'calm' ? 10 : 16, add);
  steps.sort((x, y) => x.atMs - y.atMs);

  const required: (readonly [SecurityIdentity, SecurityIdentity])[] = [];
  const denied: (readonly [SecurityIdentity, SecurityIdentity])[] = [];
  for (const a of IDENTITIES) {
    for (const b of IDENTITIES) {
      if (a > b) continue;
      const part = random.next();
      if (part < 0.6) required.push([a, b]);
      else if (part < 0.65) denied.push([a, b]);
    }
  }
  const slow = random.next();
  const preauthenticates = profile === 'calm' ? seed % 4 !== 0 : random.chance(0.7);
  return {
    seed,
    profile,
    nodes,
    settings: { leaseMs, drainMs: 100, preAuthentication: { enabled: preauthenticates, rate: 200 } },
    slowestFrameMs: profile === 'calm' ? 20 : slow < 0.5 ? 50 : slow < 0.8 ? 800 : 4_000,
    slowestDatagramMs: profile === 'calm' ? 20 : slow < 0.6 ? 60 : slow < 0.85 ? 1_500 : 20_000,
    loss: profile === 'calm' ? 0 : random.pick([0, 0.02, 0.2]),
    slowQueues: profile === 'wild' && random.chance(0.3),
    fullCrypto: seed % FULL_CRYPTO_EVERY === 0,
    preauthenticates,
    required,
    denied,
    steps,
    healMs,
    demandsLife,
    endMs: profile === 'calm' ? healMs + 2_500 : demandsLife ? healMs + 45_000 + leaseMs : changedMs + 2_000,
  };
}

function faults(
  random: Random,
  profile: 'mild' | 'wild',
  nodes: readonly string[],
  untilMs: number,
  add: (atMs: number, op: Op) => void,
): void {
  const count = profile === 'mild' ? 1 + random.int(3) : 3 + random.int(6);
  for (let i = 0; i < count; i++) {
    const at = random.between(100, untilMs);
    const node = random.pick(nodes);
    const other = random.pick(nodes.filter((n) => n !== node));
    const shortMs = random.chance(0.6) ? random.between(20, 1_000) : random.between(1_000, 20_000);
    switch (random.int(profile === 'mild' ? 6 : 12)) {
      case 0:
      case 1:
        add(at, { kind: 'cut', a: node, b: other });
        break;
      case 2:
        add(at, { kind: 'kill', node });
        add(at + shortMs, { kind: 'start', node });
        break;
      case 3:
        add(at, {
          kind: 'policy',
          pair: [random.pick(IDENTITIES), random.pick(IDENTITIES)],
          as: random.pick(['required', 'free', 'denied'] as const),
        });
        break;
      case 4:
        add(at, { kind: 'redial', node });
        break;
      case 5: {
        const what = random.pick(['both', 'channel', 'tunnel'] as const);
        add(at, { kind: 'partition', a: node, b: other, what });
        add(at + shortMs, { kind: 'heal', a: node, b: other, what });
        break;
      }
      case 6:
        add(at, { kind: 'pause', node });
        add(at + shortMs, { kind: 'resume', node });
        break;
      case 7:
        add(at, { kind: 'reboot', node });
        add(at + random.between(200, 4_000), { kind: 'start', node });
        break;
      case 8:
        add(at, { kind: 'slip', node, ms: Math.round(random.between(-60_000, 60_000)) });
        break;
      case 9:
        add(at, { kind: 'age-sessions', node });
        break;
      case 10:
        add(at, { kind: 'snapshot', node });
        add(at + shortMs / 2, { kind: 'reboot', node });
        add(at + shortMs / 2 + random.between(100, 2_000), { kind: 'start', node });
        add(at + shortMs + random.between(1_000, 4_000), { kind: 'restore', node });
        add(at + shortMs + random.between(4_100, 20_000), { kind: 'attest', node });
        break;
      default:
        add(at, { kind: 'revoke', identity: random.pick(IDENTITIES) });
    }
  }
}

/** Packets, most of them around the moments when an address changes hands. */
function bursts(
  random: Random,
  lives: readonly Life[],
  untilMs: number,
  count: number,
  add: (atMs: number, op: Op) => void,
): void {
  const moments = lives.flatMap((life) => [life.bornMs, ...(life.diedMs === undefined ? [] : [life.diedMs])]);
  for (let i = 0; i < count; i++) {
    const near = random.chance(0.8);
    const at = near
      ? Math.max(0, random.pick(moments) + random.between(-150, random.pick([80, 300, 2_000])))
      : random.between(0, untilMs);
    const there = lives.filter((life) => life.bornMs <= at && (life.diedMs ?? Number.POSITIVE_INFINITY) > at);
    if (there.length === 0) continue;
    const from = random.pick(there);
    const others = lives.filter((life) => life.ip !== from.ip && life.bornMs <= at + 300);
    if (others.length === 0) continue;
    add(at, { kind: 'burst', from: from.uid, to: random.pick(others).uid, packets: 1 + random.int(4) });
  }
}
