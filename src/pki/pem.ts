/** PEM (RFC 7468), strict form: what stands between the boundaries is base64 and nothing else. */
import { CountersignError } from '../base/errors.ts';

export function encodePem(label: string, der: Uint8Array): string {
  const lines =
    Buffer.from(der)
      .toString('base64')
      .match(/.{1,64}/g) ?? [];
  return `-----BEGIN ${label}-----\n${lines.join('\n')}\n-----END ${label}-----\n`;
}

/**
 * Every block of this label, in order. Text outside of blocks is passed over (RFC 7468, section 2), blocks of other labels too.
 * @throws CountersignError bad-input if a block is broken or there is none. The message never holds the content.
 */
export function decodePem(text: string, label: string): Buffer[] {
  const begin = `-----BEGIN ${label}-----`;
  const end = `-----END ${label}-----`;
  const out: Buffer[] = [];
  for (let at = text.indexOf(begin); at >= 0; at = text.indexOf(begin, at)) {
    const start = at + begin.length;
    const stop = text.indexOf(end, start);
    const line = text.slice(0, at).split('\n').length;
    if (stop < 0)
      throw new CountersignError('bad-input', `line ${line}: the PEM block "${label}" has no end; add "${end}"`);
    const body = text.slice(start, stop).replace(/[ \t\r\n]/g, '');
    const bytes = Buffer.from(body, 'base64');
    if (body === '' || bytes.toString('base64') !== body) {
      throw new CountersignError(
        'bad-input',
        `line ${line}: the PEM block "${label}" is not base64; write the file anew`,
      );
    }
    out.push(bytes);
    at = stop + end.length;
  }
  if (out.length === 0) throw new CountersignError('bad-input', `no PEM block "${label}" in it`);
  return out;
}
