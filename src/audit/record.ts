/** One event as one line: a fixed order of keys, so that equal events are equal bytes, and nothing secret or unbounded in it. */
import type { AuditEvent, AuditParty } from '../model/audit-event.ts';
import { MAX_LINE_LENGTH } from './layout.ts';

export const SCHEMA_VERSION = 1;
const MAX_TEXT = 1024;
const MAX_DETAILS = 32;
const REDACTED = '[redacted]';

/** An event as it stands in the log. */
export interface AuditRecord extends AuditEvent {
  /** Schema version. */
  readonly v: number;
  /** Counts from 0 without a gap. */
  readonly seq: number;
  /** RFC 3339, UTC, nine digits of a second. */
  readonly time: string;
  readonly node: string;
}

/** Names that hold secrets, whatever their spelling: "joinToken", "join_token", "wg-private-key". "publicKey" and "keyId" do not. */
const secretName =
  /(^|[a-z])(private|preshared|secret|signing)key$|^key$|token$|secret$|pass(word|phrase)$|psk$|^authorization$|^cookie$/;
const secretText = /-----BEGIN [A-Z ]*PRIVATE KEY-----/;

export interface RecordHead {
  readonly seq: number;
  /** Unix ns. */
  readonly timeNs: bigint;
  readonly node: string;
}

/** What a line of this sequence number begins with; anything else in its place was moved, removed or put in. */
export function linePrefix(seq: number): string {
  return `{"v":${SCHEMA_VERSION},"seq":${seq},"time":"`;
}

/** The line without its newline: the leaf of the tree. */
export function encodeRecord(head: RecordHead, event: AuditEvent): Buffer {
  let line = `${linePrefix(head.seq)}${formatTime(head.timeNs)}","node":${text(head.node)},"kind":${text(event.kind)}`;
  if (event.reason !== undefined) line += `,"reason":${text(event.reason)}`;
  if (event.correlation !== undefined) line += `,"correlation":${text(event.correlation)}`;
  if (event.source !== undefined) line += `,"source":${party(event.source)}`;
  if (event.destination !== undefined) line += `,"destination":${party(event.destination)}`;
  if (event.actor !== undefined) line += `,"actor":${text(event.actor)}`;
  if (event.policy !== undefined) line += `,"policy":${text(event.policy)}`;
  if (event.detail === undefined) return Buffer.from(`${line}}`);
  const whole = Buffer.from(`${line},"detail":${detail(event.detail)}}`);
  return whole.length <= MAX_LINE_LENGTH ? whole : Buffer.from(`${line},"detail":{"tooLong":${whole.length}}}`);
}

/** "2026-11-21T05:25:40.123456789Z" */
export function formatTime(unixNs: bigint): string {
  const seconds = new Date(Number(unixNs / 1_000_000_000n) * 1000).toISOString().slice(0, 19);
  return `${seconds}.${String(unixNs % 1_000_000_000n).padStart(9, '0')}Z`;
}

function text(value: string): string {
  if (secretText.test(value)) return `"${REDACTED}"`;
  return JSON.stringify(value.length <= MAX_TEXT ? value : `${value.slice(0, MAX_TEXT).toWellFormed()}…`);
}

function scalar(value: unknown): string {
  if (typeof value === 'boolean' || (typeof value === 'number' && Number.isFinite(value))) return JSON.stringify(value);
  return text(String(value));
}

function party(p: AuditParty): string {
  const fields: string[] = [];
  if (p.spiffeId !== undefined) fields.push(`"spiffeId":${text(p.spiffeId)}`);
  if (p.identity !== undefined) fields.push(`"identity":${scalar(p.identity)}`);
  if (p.node !== undefined) fields.push(`"node":${text(p.node)}`);
  if (p.address !== undefined) fields.push(`"address":${text(p.address)}`);
  if (p.port !== undefined) fields.push(`"port":${scalar(p.port)}`);
  return `{${fields.join(',')}}`;
}

function detail(values: Readonly<Record<string, unknown>>): string {
  const names = Object.keys(values)
    .filter((name) => values[name] !== undefined)
    .sort()
    .slice(0, MAX_DETAILS);
  const fields = names.map((name) => {
    const secret = secretName.test(name.toLowerCase().replace(/[^a-z0-9]/g, ''));
    return `${text(name)}:${secret ? `"${REDACTED}"` : scalar(values[name])}`;
  });
  return `{${fields.join(',')}}`;
}
