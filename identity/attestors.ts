/** The node attestors that the configuration turns on. */
import type { Clock } from '../src/base/clock.ts';
import { joinTokenAttestor, type NodeAttestor } from './attest.ts';
import type { ServerConfig } from './config.ts';
import type { Nodes } from './nodes.ts';
import type { Store } from './store.ts';
import { x509popAttestor } from './x509pop.ts';

export function attestorsOf(
  { attestors: { join_token, x509pop } }: ServerConfig,
  { store, nodes, clock }: { readonly store: Store; readonly nodes: Nodes; readonly clock: Clock },
): NodeAttestor[] {
  const attestors: NodeAttestor[] = [];
  if (join_token.enabled) attestors.push(joinTokenAttestor(store, clock));
  if (x509pop !== undefined) attestors.push(x509popAttestor({ config: x509pop, nodes, clock }));
  return attestors;
}
