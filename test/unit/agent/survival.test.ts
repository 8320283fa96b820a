/** The question at three in the morning: the identity server is gone, how long does this node go on, and what stops first? */
import { expect, test } from 'vitest';
import { withoutServer } from '../../../src/agent/survival.ts';

const NOW = Date.UTC(2026, 5, 15, 3);
const MINUTE = 60_000;
const noJwt = { count: 0, firstMs: Number.POSITIVE_INFINITY, lastMs: Number.NEGATIVE_INFINITY };

/** Minutes from now; undefined: no SVID. */
function survival(node: number, workloads: Record<string, number | undefined>, jwt?: [first: number, last: number]) {
  const entries = Object.entries(workloads).map(([id, minutes]) => ({
    entry: { id },
    svid: minutes === undefined ? undefined : { notAfterMs: NOW + minutes * MINUTE },
    refused: undefined,
  }));
  const jwtEnds =
    jwt === undefined ? noJwt : { count: 2, firstMs: NOW + jwt[0] * MINUTE, lastMs: NOW + jwt[1] * MINUTE };
  return withoutServer({
    status: { nodeSvidNotAfterMs: NOW + node * MINUTE },
    svids: { entries: () => entries as never, jwtEnds: () => jwtEnds },
    nowMs: NOW,
  });
}

test('JWT-SVIDs stop first, as they live shortest', () => {
  expect(survival(60, { web: 40, db: 50 }, [3, 5])).toMatchObject({
    first: 'jwtSvids',
    until: '2026-06-15T03:03:00.000Z',
    forSeconds: 180,
    jwtSvids: { held: 2, lastUntil: '2026-06-15T03:05:00.000Z' },
    workloadSvids: { entry: 'web', held: 2, forSeconds: 2400, lastUntil: '2026-06-15T03:50:00.000Z' },
    nodeSvid: { forSeconds: 3600 },
    withoutSvid: [],
  });
});

test('the first workload, then the node, when nobody asked for JWT-SVIDs', () => {
  expect(survival(60, { web: 40, db: 50 })).toMatchObject({ first: 'workloadSvids', forSeconds: 2400 });
  expect(survival(30, { web: 40, db: 50 })).toMatchObject({ first: 'nodeSvid', forSeconds: 1800 });
  expect(survival(30, {})).toMatchObject({ first: 'nodeSvid' });
});

test('who has none now gets none, and is named', () => {
  expect(survival(60, { web: 40, gone: -1, refused: undefined })).toMatchObject({
    first: 'workloadSvids',
    withoutSvid: ['gone', 'refused'],
  });
});

test('a node whose own SVID has ended goes on for no second more', () => {
  expect(survival(-5, { web: 40 })).toMatchObject({ first: 'nodeSvid', forSeconds: 0 });
});
