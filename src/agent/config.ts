/** The agent's settings: one schema, checked whole before anything starts. */
import { isIP } from 'node:net';
import { z } from 'zod';
import { absolutePath, logLevel, parsed } from '../base/config-types.ts';
import { NET } from '../base/registry/net.ts';
import { parseAddress } from '../model/address.ts';
import type { IpAddress, NodeName, SpiffeId, TrustDomain } from '../model/ids.ts';
import { parseNodeName, parseSpiffeId, parseTrustDomain } from '../model/spiffe-id.ts';

const address = parsed<IpAddress>((text) => {
  const value = parseAddress(text);
  return value === undefined ? { ok: false, error: `"${text}" is not an IPv4 or IPv6 address` } : { ok: true, value };
});
const spiffeId = parsed<SpiffeId>((text) => {
  const result = parseSpiffeId(text);
  return result.ok ? { ok: true, value: result.value.id } : result;
});
const socketAddress = parsed<string>((text) => {
  const match = /^(?:\[([0-9a-fA-F:]+)\]|([0-9.]+)):(\d{1,5})$/.exec(text);
  const host = match?.[1] ?? match?.[2] ?? '';
  const port = Number(match?.[3]);
  return isIP(host) !== 0 && port > 0 && port < 65536
    ? { ok: true, value: text }
    : { ok: false, error: `"${text}" is not an address with a port, such as 192.0.2.1:4250 or [2001:db8::1]:4250` };
});
const interfaceName = z.string().regex(/^[^\s/]{1,15}$/, 'must be an interface name of 1 to 15 characters; correct it');

/** "30s", "500ms", "10m", "1h" to ms. */
const duration = z.string().transform((text, context) => {
  const match = /^(\d+)(ms|s|m|h)$/.exec(text);
  if (match === null) {
    context.addIssue({
      code: 'custom',
      message: `"${text}" is not a duration; write it as 500ms, 30s, 10m or 1h`,
      input: text,
    });
    return z.NEVER;
  }
  return Number(match[1]) * { ms: 1, s: 1000, m: 60_000, h: 3_600_000 }[match[2] as 'ms' | 's' | 'm' | 'h'];
});
const durationOf = (fallback: string, floorMs: number, floor: string) =>
  duration.refine((ms) => ms >= floorMs, `must be at least ${floor}; raise it`).prefault(fallback);

/** As in Kubernetes. */
const labelKey = z
  .string()
  .regex(
    /^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?\/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$/,
    'must be a label key as in Kubernetes; correct it',
  );
const labelValue = z
  .string()
  .regex(/^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$/, 'must be a label value as in Kubernetes; correct it');

const endpoint = z.strictObject({
  name: z
    .string()
    .regex(
      /^[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?$/,
      'must be a lower-case DNS name of at most 63 characters; correct it',
    ),
  /** Host side of the workload's veth, in the agent's network namespace. */
  interface: interfaceName,
  addresses: z.array(address).min(1).max(16),
  mac: z
    .string()
    .regex(
      /^([0-9a-f]{2}:){5}[0-9a-f]{2}$/,
      'must be six hex bytes in lower case, such as 02:00:00:00:00:01; correct it',
    )
    .optional(),
  spiffeId,
  /** An SVID provided by somebody else instead of the identity server's. Read when it is needed. */
  svid: z.strictObject({ certificateFile: absolutePath, keyFile: absolutePath }).optional(),
});
export type EndpointConfig = z.infer<typeof endpoint>;

export const agentConfigSchema = z
  .strictObject({
    apiVersion: z.literal('countersign.dev/v1alpha1'),
    kind: z.literal('AgentConfig'),
    trustDomain: parsed<TrustDomain>(parseTrustDomain),
    node: z.strictObject({
      name: parsed<NodeName>(parseNodeName),
      underlay: interfaceName,
      /** What policies select nodes by. */
      labels: z.record(labelKey, labelValue).default({}),
    }),
    server: z
      .strictObject({
        address: socketAddress.optional(),
        /** Where several servers share one datastore: one of them answers, the agent finds it. */
        addresses: z.array(socketAddress).min(1).max(8).optional(),
        /** PEM file of the trust bundle: there is no trust on first use. */
        bundleFile: absolutePath,
        joinTokenFile: absolutePath.optional(),
        /** How this node proves which one it is. */
        attestor: z
          .strictObject({
            type: z
              .enum(['join_token', 'x509pop', 'k8s_psat'])
              .refine((type) => type !== 'k8s_psat', 'k8s_psat is not supported yet; use join_token or x509pop')
              .default('join_token'),
            /** x509pop: PEM, the node's certificate and what is between it and the server's caFile; and its key, 0600. */
            certificateFile: absolutePath.optional(),
            keyFile: absolutePath.optional(),
          })
          .refine(
            ({ type, certificateFile, keyFile }) =>
              [certificateFile, keyFile].every((file) => (file !== undefined) === (type === 'x509pop')),
            'x509pop needs certificateFile and keyFile, and nothing else does; correct it',
          )
          .prefault({}),
      })
      .refine(
        ({ address, addresses }) => (address === undefined) !== (addresses === undefined),
        'needs address or addresses, one of the two; correct it',
      )
      .transform(({ address, addresses, ...rest }) => ({ ...rest, addresses: addresses ?? [address as string] })),
    dataDir: absolutePath,
    bpffs: absolutePath.default('/sys/fs/bpf'),
    peer: z.strictObject({
      listen: z.array(socketAddress).min(1).max(8),
      /** Where nodes are dialed besides what the identity server says, and before that. Never who they are or what they may vouch for. */
      static: z
        .array(
          z.strictObject({
            node: parsed<NodeName>(parseNodeName),
            addresses: z.array(socketAddress).min(1).max(8),
          }),
        )
        .max(10_000)
        .default([]),
    }),
    sockets: z
      .strictObject({
        admin: absolutePath.default('/run/countersign/agent-admin.sock'),
        workload: absolutePath.default('/run/countersign/workload.sock'),
      })
      .prefault({}),
    /** What workloads are known by besides what the kernel says of their processes. */
    workloadAttestation: z
      .strictObject({
        /** Of the Docker Engine API, for docker: selectors; without it nobody has any. */
        dockerSocket: absolutePath.optional(),
        /** Of the system's D-Bus, for systemd:fragment_path. */
        systemBus: absolutePath.default('/run/dbus/system_bus_socket'),
        deadline: durationOf('5s', 100, '100ms'),
      })
      .prefault({}),
    endpoints: z.array(endpoint).max(4095).default([]),
    policies: z.strictObject({
      directory: absolutePath,
      /** Rules for HTTP, Kafka and DNS, which no kernel program of ours reads: refused, or passed over with a warning. */
      l7: z.enum(['refuse', 'ignore-with-warning']).default('refuse'),
    }),
    authentication: z
      .strictObject({
        /** Workload traffic may cross the underlay in clear. Without a tunnel nothing binds a packet to its node. */
        allowUnboundPath: z.boolean().default(false),
        lease: durationOf('30s', 1000, '1s'),
        maxAuthAge: durationOf('1h', 10_000, '10s'),
        queueSize: z.number().int().min(16).max(65_536).default(1024),
        /** Pairs that policy requires are proven as soon as both sides are known, before a packet asks. */
        preAuthentication: z
          .strictObject({
            enabled: z.boolean().default(true),
            /** Proofs of this kind per second. */
            rate: z.number().int().min(1).max(10_000).default(200),
            /** Channels kept open for it and for the first packets of pairs that policy requires. */
            channels: z.number().int().min(1).max(4096).default(256),
          })
          .prefault({}),
      })
      .prefault({}),
    encryption: z
      .strictObject({
        enabled: z.boolean().default(true),
        type: z.literal('wireguard').default('wireguard'),
        wireguard: z
          .strictObject({
            device: interfaceName.default(NET.wireguardDevice),
            port: z.number().int().min(1).max(65_535).default(NET.wireguardPort),
            implementation: z.enum(['auto', 'kernel', 'wireguard-go']).default('auto'),
            mtu: z.number().int().min(1280).max(9000).default(1420),
          })
          .prefault({}),
      })
      .prefault({}),
    hold: z
      .strictObject({
        device: interfaceName.default(NET.holdDevice),
        limitPerIdentity: z.number().int().min(1).max(400).default(64),
        limitTotal: z.number().int().min(0).max(400).default(400),
        deadline: durationOf('5s', 100, '100ms'),
      })
      .prefault({}),
    datapath: z
      .strictObject({
        attach: z.enum(['auto', 'tcx', 'clsact']).default('auto'),
        signalInterval: durationOf('200ms', 1, '1ms'),
      })
      .prefault({}),
    enforcement: z.enum(['enforce', 'observe']).default('enforce'),
    /** The whole list of workload traffic that no policy is asked about, besides ARP and neighbour discovery for its own addresses. */
    exempt: z
      .strictObject({
        /** DHCPv4 and DHCPv6 between an endpoint and its own host. */
        dhcp: z.boolean().default(false),
        /** Connections that this host opens to its own endpoints, as probes do. */
        hostProbes: z.boolean().default(false),
      })
      .prefault({}),
    logLevel,
  })
  .superRefine((config, context) => {
    const issue = (path: (string | number)[], message: string) => context.addIssue({ code: 'custom', path, message });
    const seen = {
      name: new Map<string, number>(),
      interface: new Map<string, number>(),
    };
    config.peer.listen.forEach((text, i) => {
      // Peers are told these addresses, and workloads are kept off them: a wildcard names none.
      if (/^(?:0\.0\.0\.0|\[::\]):/.test(text)) {
        issue(['peer', 'listen', i], `${text} is a wildcard; name the address at which the other nodes reach this one`);
      }
    });
    const dialed = new Map<string, number>();
    config.peer.static.forEach(({ node }, i) => {
      const first = dialed.get(node);
      if (first !== undefined) {
        issue(['peer', 'static', i, 'node'], `${node} is already that of peer.static[${first}]; list each node once`);
      }
      dialed.set(node, first ?? i);
    });
    config.endpoints.forEach((e, i) => {
      const once = (kind: keyof typeof seen, value: string, path: (string | number)[]) => {
        const first = seen[kind].get(value);
        if (first === undefined) seen[kind].set(value, i);
        else
          issue(
            path,
            `${value} is already that of endpoints[${first}] (${config.endpoints[first]!.name}); give each endpoint its own`,
          );
      };
      once('name', e.name, ['endpoints', i, 'name']);
      once('interface', e.interface, ['endpoints', i, 'interface']);
      // An address may be named by several endpoints: it belongs to whoever's interface is there first, until it goes.
      if (new Set(e.addresses).size < e.addresses.length)
        issue(['endpoints', i, 'addresses'], 'names an address twice; name it once');
      if (e.interface === config.node.underlay) {
        issue(
          ['endpoints', i, 'interface'],
          `${e.interface} is the underlay; name the host side of the workload's veth`,
        );
      }
    });
    if (!config.encryption.enabled && !config.authentication.allowUnboundPath) {
      issue(
        ['encryption', 'enabled'],
        'mutual authentication needs an encrypted path that binds packets to their node; enable encryption, or accept the risk with authentication.allowUnboundPath: true',
      );
    }
  });
export type AgentConfig = z.infer<typeof agentConfigSchema>;
