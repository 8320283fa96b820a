/** Authenticator requests (RFC 9261, section 4): the challenge that an authenticator answers. */
import { err, ok, type Result } from '../../base/errors.ts';
import type { ReasonCode } from '../../base/registry/reason-codes.ts';
import type { ChannelRole } from '../../channel/peer-channel.ts';
import { SIGNATURE_SCHEMES } from './schemes.ts';
import { EXTENSION_TYPE, HANDSHAKE_TYPE, handshakeMessage, lengthField, WireError, WireReader } from './wire.ts';

/** Far above what we send, far below what could hurt. */
export const MAX_REQUEST_OCTETS = 4096;

export interface AuthenticatorRequest {
  /** certificate_request_context, echoed by the authenticator. */
  readonly context: Buffer;
  /** SignatureScheme codes the requester accepts, in its order of preference. */
  readonly schemes: readonly number[];
  /** The whole message, as it enters the transcript. */
  readonly octets: Buffer;
}

/** A client asks with ClientCertificateRequest, a server with CertificateRequest. */
function requestType(requester: ChannelRole): number {
  return requester === 'client' ? HANDSHAKE_TYPE.clientCertificateRequest : HANDSHAKE_TYPE.certificateRequest;
}

const offered: readonly number[] = SIGNATURE_SCHEMES.map(({ code }) => code);

/** The one extension of our requests: all of SIGNATURE_SCHEMES. Without server_name, so a peer learns nothing from the request. */
const extensions = (() => {
  const schemes = Buffer.concat(offered.map((code) => lengthField(2, code)));
  const list = Buffer.concat([lengthField(2, schemes.length), schemes]);
  const extension = Buffer.concat([
    lengthField(2, EXTENSION_TYPE.signatureAlgorithms),
    lengthField(2, list.length),
    list,
  ]);
  return Buffer.concat([lengthField(2, extension.length), extension]);
})();

/**
 * A request by the side with this role. The caller warrants that `context` is used once on this channel (RequestLedger does).
 * @throws RangeError unless the context has 1 to 255 octets.
 */
export function createRequest(keys: { readonly role: ChannelRole }, context: Buffer): Buffer {
  return buildRequest(keys, context).octets;
}

/** The same, as parseRequest would read it. */
export function buildRequest(keys: { readonly role: ChannelRole }, context: Buffer): AuthenticatorRequest {
  if (context.length < 1 || context.length > 255) throw new RangeError('a request context has 1 to 255 octets');
  const octets = handshakeMessage(requestType(keys.role), lengthField(1, context.length), context, extensions);
  return { context, schemes: offered, octets };
}

/**
 * Reads a request made by the side with role `requester`. AUTH_BAD_REQUEST for anything but one whole message of that
 * side's type, with signature_algorithms (RFC 8446, section 4.3.2) and no extension twice. Unknown extensions are
 * ignored (RFC 9261, section 5.2.1).
 */
export function parseRequest(octets: Buffer, requester: ChannelRole): Result<AuthenticatorRequest, ReasonCode> {
  if (octets.length > MAX_REQUEST_OCTETS) return err('AUTH_BAD_REQUEST');
  try {
    const reader = new WireReader(octets);
    const body = reader.message(requestType(requester));
    reader.end();
    const context = body.vector(1, 1);
    const schemes = parseExtensions(body.nested(2, 2));
    body.end();
    return ok({ context, schemes, octets });
  } catch (thrown) {
    if (thrown instanceof WireError) return err('AUTH_BAD_REQUEST');
    throw thrown;
  }
}

function parseExtensions(reader: WireReader): number[] {
  const seen: number[] = [];
  let schemes: number[] | undefined;
  while (!reader.done) {
    const type = reader.uint(2);
    const data = reader.nested(2);
    if (seen.includes(type)) throw new WireError('an extension twice');
    seen.push(type);
    if (type === EXTENSION_TYPE.signatureAlgorithms) schemes = parseSchemes(data);
  }
  if (schemes === undefined) throw new WireError('no signature_algorithms');
  return schemes;
}

function parseSchemes(reader: WireReader): number[] {
  const list = reader.nested(2, 2);
  reader.end();
  const schemes: number[] = [];
  while (!list.done) schemes.push(list.uint(2));
  return schemes;
}
