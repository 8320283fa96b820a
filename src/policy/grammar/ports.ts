/** Ports and ICMP types of the Cilium grammar, to what a rule matches. */
import { z } from 'zod';
import type { PortMatch } from '../rules.ts';
import { evenIfWrong, isRecord } from './fields.ts';
import { ICMP_TYPES } from './icmp-types.ts';

/** ANY means every protocol that has ports. */
const PROTOCOLS: Readonly<Record<string, readonly number[]>> = { TCP: [6], UDP: [17], SCTP: [132], ANY: [6, 17, 132] };
const MAX_PORTS = 40;
const MAX_ICMP_FIELDS = 40;

const PORT_NUMBER = /^(?:0|[1-9]\d{0,4})$/;
/** RFC 6335, section 5.1. */
const SERVICE_NAME = /^(?=.{1,15}$)(?=.*[A-Za-z])[A-Za-z0-9](?:-?[A-Za-z0-9])*$/;

export function isPortName(text: string): boolean {
  return SERVICE_NAME.test(text);
}

const portText = z.string().superRefine((text, context) => {
  if ((PORT_NUMBER.test(text) && Number(text) <= 65_535) || isPortName(text)) return;
  const message = /^0\d+$/.test(text)
    ? 'a leading zero makes the number octal to some; write it without'
    : 'not a port; write a number from 0 (every port) to 65535 in quotes, or the name of a port';
  context.addIssue({ code: 'custom', message });
});

const protocolText = z.string().superRefine((text, context) => {
  if (Object.hasOwn(PROTOCOLS, text)) return;
  const instead = text === 'ICMP' || text === 'ICMPv6' ? 'icmps instead of toPorts' : Object.keys(PROTOCOLS).join(', ');
  context.addIssue({ code: 'custom', message: `cannot be ${JSON.stringify(text.slice(0, 32))}; use ${instead}` });
});

const port = z
  .strictObject({
    port: portText,
    endPort: z.number().int().min(0).max(65_535).optional(),
    protocol: protocolText.optional(),
  })
  .superRefine((value: unknown, context) => {
    if (!isRecord(value) || typeof value.port !== 'string' || typeof value.endPort !== 'number') return;
    const complain = (message: string) => context.addIssue({ code: 'custom', path: ['endPort'], message });
    if (value.endPort === 0) return;
    if (!PORT_NUMBER.test(value.port)) complain('a range begins with a number; write the number instead of the name');
    else if (Number(value.port) === 0) complain('port "0" is every port; write the first of the range, or no endPort');
    else if (value.endPort < Number(value.port)) complain(`less than port ${value.port}; exchange the two`);
  }, evenIfWrong);
export type PortDocument = z.infer<typeof port>;

export const portList = z.array(port).max(MAX_PORTS).optional();

export function portMatches(ports: readonly PortDocument[]): PortMatch[] {
  return ports.flatMap(({ port, endPort, protocol }): PortMatch[] => {
    const protocols = PROTOCOLS[protocol ?? 'ANY'] ?? [];
    if (!PORT_NUMBER.test(port)) return [{ protocols, name: port.toLowerCase() }];
    const first = Number(port);
    if (first === 0) return protocols.map((number) => ({ protocol: number, ports: 'all' }));
    const last = endPort === undefined || endPort === 0 ? first : endPort;
    return protocols.map((number) => ({ protocol: number, first, last }));
  });
}

/** For a message: "80/TCP, 53". */
export function portsText(ports: readonly PortDocument[]): string {
  return ports
    .map(({ port, endPort, protocol }) => {
      const range = endPort === undefined || endPort === 0 ? port : `${port}-${endPort}`;
      return protocol === undefined || protocol === 'ANY' ? range : `${range}/${protocol}`;
    })
    .join(', ');
}

const icmpField = z
  .strictObject({ family: z.enum(['IPv4', 'IPv6']).optional(), type: z.union([z.number(), z.string()]) })
  .superRefine((value: unknown, context) => {
    if (!isRecord(value)) return;
    const { family, type } = value;
    if (typeof type !== 'string' && typeof type !== 'number') return;
    const names = ICMP_TYPES[family === 'IPv6' ? 'IPv6' : 'IPv4'];
    if (icmpType(names, type) !== undefined) return;
    const known = Object.keys(names).join(', ');
    const message = `not a type of ${family === 'IPv6' ? 'ICMPv6' : 'ICMP'}; use a number from 0 to 255, or ${known}`;
    context.addIssue({ code: 'custom', path: ['type'], message });
  }, evenIfWrong);

export const icmpList = z
  .array(z.strictObject({ fields: z.array(icmpField).max(MAX_ICMP_FIELDS).optional() }))
  .optional();
export type IcmpDocument = NonNullable<z.infer<typeof icmpList>>[number];

function icmpType(names: Readonly<Record<string, number>>, type: string | number): number | undefined {
  if (typeof type === 'string' && Object.hasOwn(names, type)) return names[type];
  const text = String(type);
  return PORT_NUMBER.test(text) && Number(text) <= 255 ? Number(text) : undefined;
}

export function icmpMatches(rules: readonly IcmpDocument[]): PortMatch[] {
  return rules.flatMap(({ fields = [] }) =>
    fields.flatMap(({ family = 'IPv4', type }): PortMatch[] => {
      const number = icmpType(ICMP_TYPES[family], type);
      return number === undefined ? [] : [{ protocol: family === 'IPv6' ? 58 : 1, first: number, last: number }];
    }),
  );
}
