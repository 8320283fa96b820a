import { generateKeyPairSync } from 'node:crypto';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  encodeCheckpoint,
  encodeVkey,
  noteVerifier,
  openCheckpoint,
  openNote,
  parseCheckpoint,
  parseVkey,
  signNote,
} from '../../../src/audit/note.ts';
import { signedNote } from './vectors.ts';

const { privateKey, publicKey } = generateKeyPairSync('ed25519');
const verifier = noteVerifier('example.org/node/node-a', publicKey);
const checkpoint = { origin: verifier.name, size: 3, root: Buffer.alloc(32, 7) };

describe('signed notes', () => {
  test('the published example opens, and its verifier key round-trips', () => {
    const known = parseVkey(signedNote.vkey);
    if (!known.ok) throw new Error(known.error);
    expect(openNote(signedNote.note, known.value)).toEqual({ ok: true, value: signedNote.text });
    expect(encodeVkey(known.value)).toBe(signedNote.vkey);
  });

  test('a checkpoint round-trips', () => {
    const note = signNote(encodeCheckpoint(checkpoint), verifier, privateKey);
    expect(openCheckpoint(note, verifier)).toEqual({ ok: true, value: checkpoint });
  });

  test('any change to any byte of a note is refused', () => {
    const note = Buffer.from(signNote(encodeCheckpoint(checkpoint), verifier, privateKey));
    fc.assert(
      fc.property(fc.nat(note.length - 1), fc.integer({ min: 1, max: 255 }), (at, flip) => {
        const changed = Buffer.from(note);
        changed[at]! ^= flip;
        const opened = openCheckpoint(changed.toString(), verifier);
        // Base64 has spare bits in its last digit: another spelling of the very same bytes is no change.
        if (opened.ok) expect(opened.value).toEqual(checkpoint);
        return !opened.ok || changed.toString().replace(/\S=+\n$/, '') === note.toString().replace(/\S=+\n$/, '');
      }),
      { numRuns: 1000 },
    );
  });

  test('a note by another key of the same name is refused', () => {
    const other = generateKeyPairSync('ed25519');
    const forged = signNote(
      encodeCheckpoint(checkpoint),
      noteVerifier(verifier.name, other.publicKey),
      other.privateKey,
    );
    expect(openCheckpoint(forged, verifier)).toMatchObject({
      ok: false,
      error: expect.stringContaining('no signature'),
    });
    const lying = signNote(encodeCheckpoint(checkpoint), verifier, other.privateKey);
    expect(openCheckpoint(lying, verifier)).toMatchObject({ ok: false, error: 'the signature does not verify' });
  });

  test('a checkpoint of another log is refused though the key signed it', () => {
    const note = signNote(encodeCheckpoint({ ...checkpoint, origin: 'example.org/node/b' }), verifier, privateKey);
    expect(openCheckpoint(note, verifier)).toEqual({ ok: false, error: 'the checkpoint is of another log' });
  });

  test('parsers take any text without throwing', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'binary' }), (text) => {
        parseVkey(text);
        parseCheckpoint(text);
        openNote(text, verifier);
      }),
    );
  });

  test('a verifier key whose id is not its own is refused', () => {
    const bad = signedNote.vkey.replace('c74f20a3', 'c74f20a4');
    expect(parseVkey(bad).ok).toBe(false);
  });
});
