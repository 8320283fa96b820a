/**
 * Signed notes (https://c2sp.org/signed-note) and the checkpoints they carry (https://c2sp.org/tlog-checkpoint), with
 * Ed25519 as the only signature type: any C2SP tool can check what is written here.
 */
import { createPublicKey, hash, type KeyObject, sign, verify } from 'node:crypto';
import { err, ok, type Result } from '../base/errors.ts';

const ED25519 = 0x01;
const SPKI_ED25519 = Buffer.from('302a300506032b6570032100', 'hex');
/** A note we take has one signature and a text of three lines; this bounds what is parsed of an untrusted one. */
const MAX_NOTE_LENGTH = 4096;

export interface NoteVerifier {
  readonly name: string;
  readonly keyId: Buffer;
  readonly publicKey: KeyObject;
}

export interface Checkpoint {
  readonly origin: string;
  readonly size: number;
  readonly root: Buffer;
}

/** "Key names MUST be non-empty and MUST NOT have any Unicode spaces or plus" (signed-note). */
export function isKeyName(name: string): boolean {
  return name.length > 0 && name.length <= 256 && !/[\s+\p{Cc}]/u.test(name);
}

/** SHA-256(name || 0x0A || signature type || public key)[:4]. */
function keyIdOf(name: string, rawPublicKey: Buffer): Buffer {
  return hash('sha256', Buffer.concat([Buffer.from(`${name}\n`), Buffer.of(ED25519), rawPublicKey]), 'buffer').subarray(
    0,
    4,
  );
}

function rawOf(publicKey: KeyObject): Buffer {
  return publicKey.export({ type: 'spki', format: 'der' }).subarray(SPKI_ED25519.length);
}

export function noteVerifier(name: string, publicKey: KeyObject): NoteVerifier {
  return { name, keyId: keyIdOf(name, rawOf(publicKey)), publicKey };
}

/** "<name>+<key id, hex>+<base64 of type and public key>": the verifier key of signed-note. */
export function encodeVkey(verifier: NoteVerifier): string {
  const key = Buffer.concat([Buffer.of(ED25519), rawOf(verifier.publicKey)]);
  return `${verifier.name}+${verifier.keyId.toString('hex')}+${key.toString('base64')}`;
}

export function parseVkey(text: string): Result<NoteVerifier, string> {
  const match = /^([^+]+)\+([0-9a-f]{8})\+([A-Za-z0-9+/]+={0,2})$/.exec(text);
  if (match === null || !isKeyName(match[1]!)) return err('not a verifier key of the form name+id+key');
  const key = Buffer.from(match[3]!, 'base64');
  if (key.length !== 33 || key[0] !== ED25519) return err('the verifier key is not an Ed25519 key');
  const raw = key.subarray(1);
  const keyId = keyIdOf(match[1]!, raw);
  if (keyId.toString('hex') !== match[2]) return err('the key id does not belong to the name and key');
  const publicKey = createPublicKey({ key: Buffer.concat([SPKI_ED25519, raw]), format: 'der', type: 'spki' });
  return ok({ name: match[1]!, keyId, publicKey });
}

/** `text` ends in a newline. */
export function signNote(text: string, verifier: NoteVerifier, privateKey: KeyObject): string {
  const signature = sign(null, Buffer.from(text), privateKey);
  const line = Buffer.concat([verifier.keyId, signature]).toString('base64');
  return `${text}\n— ${verifier.name} ${line}\n`;
}

/** The text of the note if this key signed it. Signatures of unknown keys (co-signers) are passed over, as the standard asks. */
export function openNote(note: string, verifier: NoteVerifier): Result<string, string> {
  if (note.length > MAX_NOTE_LENGTH) return err('the signed note is too long');
  const split = note.lastIndexOf('\n\n');
  if (split < 0 || !note.endsWith('\n')) return err('not a signed note: no blank line before the signatures');
  const text = note.slice(0, split + 1);
  for (const line of note.slice(split + 2, -1).split('\n')) {
    const match = /^— (\S+) ([A-Za-z0-9+/]+={0,2})$/.exec(line);
    if (match === null) return err('a signature line of the note is malformed');
    const bytes = Buffer.from(match[2]!, 'base64');
    if (match[1] !== verifier.name || !bytes.subarray(0, 4).equals(verifier.keyId)) continue;
    if (!verify(null, Buffer.from(text), verifier.publicKey, bytes.subarray(4))) {
      return err('the signature does not verify');
    }
    return ok(text);
  }
  return err(`no signature by ${verifier.name}+${verifier.keyId.toString('hex')}`);
}

export function encodeCheckpoint(checkpoint: Checkpoint): string {
  return `${checkpoint.origin}\n${checkpoint.size}\n${checkpoint.root.toString('base64')}\n`;
}

/** Three lines exactly; extension lines are allowed by the standard but this log writes none, so they are refused. */
export function parseCheckpoint(text: string): Result<Checkpoint, string> {
  const match = /^([^\n]+)\n(0|[1-9]\d{0,14})\n([A-Za-z0-9+/]{43}=)\n$/.exec(text);
  if (match === null) return err('not a checkpoint of three lines: origin, size, root');
  return ok({ origin: match[1]!, size: Number(match[2]), root: Buffer.from(match[3]!, 'base64') });
}

/** The checkpoint in a note, if this key signed it for its own origin. */
export function openCheckpoint(note: string, verifier: NoteVerifier): Result<Checkpoint, string> {
  const text = openNote(note, verifier);
  if (!text.ok) return text;
  const checkpoint = parseCheckpoint(text.value);
  if (checkpoint.ok && checkpoint.value.origin !== verifier.name) return err('the checkpoint is of another log');
  return checkpoint;
}
