/**
 * Another identity server of the same trust domain as the upstream authority: its admin door, asked with the SVID of a workload whose entry
 * there says `downstream`.
 */
import { Metadata, type ServiceError } from '@grpc/grpc-js';
import { CaAdminClient, type SignDownstreamAuthorityReply } from '../../proto/gen/countersign/admin/v1/admin.ts';
import type { Clock } from '../../src/base/clock.ts';
import { CountersignError } from '../../src/base/errors.ts';
import { errorCodeOfGrpcStatus } from '../../src/base/exit-codes.ts';
import { readPublicFile } from '../../src/base/private-file.ts';
import { reasonCodes } from '../../src/base/registry/reason-codes.ts';
import { targetOf } from '../../src/base/server-target.ts';
import type { TrustDomain } from '../../src/model/ids.ts';
import { trustDomainOf } from '../../src/model/spiffe-id.ts';
import { PinnedCredentials } from '../../src/pki/server-credentials.ts';
import { readSvidDirectory } from '../../src/pki/svid-directory.ts';
import { certificatesOf } from './certificates.ts';
import type { Minted, UpstreamAuthority } from './upstream.ts';

const MAX_MESSAGE_BYTES = 1 << 20;
/** Roots of a bundle. */
const MAX_ROOTS = 64;

export interface CountersignUpstreamConfig {
  /** "HOST:PORT" of `admin.listen` there; of several the first that takes the connection is asked. */
  readonly addresses: readonly string[];
  /** Directory as `countersign svid fetch` and `svid watch` write it. */
  readonly svid: string;
  /** PEM: the trust bundle that the server there is proven by. undefined: the one beside the SVID. */
  readonly bundleFile?: string | undefined;
  /** For each request. */
  readonly timeoutSeconds: number;
}

export class CountersignUpstream implements UpstreamAuthority {
  readonly name: string;
  readonly #config: CountersignUpstreamConfig;
  readonly #trustDomain: TrustDomain;
  readonly #clock: Clock;

  constructor(config: CountersignUpstreamConfig, trustDomain: TrustDomain, clock: Clock) {
    this.name = `identity server at ${config.addresses.join(', ')}`;
    this.#config = config;
    this.#trustDomain = trustDomain;
    this.#clock = clock;
  }

  /** The files are read for each authority: the SVID lives for an hour or so, and others keep it fresh. */
  async mint(csr: Buffer, ttlSeconds: number): Promise<Minted> {
    const pinned = this.#credentials();
    const client = new CaAdminClient(targetOf(this.#config.addresses), pinned, {
      'grpc.use_local_subchannel_pool': 1,
      'grpc.enable_http_proxy': 0,
      'grpc.service_config_disable_resolution': 1,
      'grpc.enable_retries': 0,
      'grpc.enable_channelz': 0,
      'grpc.max_receive_message_length': MAX_MESSAGE_BYTES,
      // the server proves a SPIFFE ID, whatever it is called
      'grpc.default_authority': 'countersign',
    });
    const deadline = Date.now() + this.#config.timeoutSeconds * 1000;
    try {
      const { chain, roots } = await new Promise<SignDownstreamAuthorityReply>((resolve, reject) => {
        const request = { csr, ttlSeconds: Math.min(Math.max(1, Math.floor(ttlSeconds)), 0xffff_ffff) };
        client.signDownstreamAuthority(request, new Metadata(), { deadline }, (error, reply) =>
          error === null ? resolve(reply) : reject(this.#errorOf(error, pinned)),
        );
      });
      if (roots.length > MAX_ROOTS)
        throw this.#problem(`it gives ${roots.length} roots; at most ${MAX_ROOTS} are taken`);
      return { chain, roots };
    } finally {
      client.close();
    }
  }

  #credentials(): PinnedCredentials {
    const { svid: directory, bundleFile } = this.#config;
    const { svid, bundle } = readSvidDirectory(directory, 'ca.upstream.svid:');
    if (trustDomainOf(svid.spiffeId) !== this.#trustDomain) {
      const message = `ca.upstream.svid: ${directory}: ${svid.spiffeId} is not of the trust domain ${this.#trustDomain}; an authority is signed within one trust domain alone`;
      throw new CountersignError('bad-input', message);
    }
    const authorities =
      bundleFile === undefined
        ? bundle.authorities
        : certificatesOf(readPublicFile(bundleFile).toString('latin1')).map((one) => one.der);
    return new PinnedCredentials({ bundle: { ...bundle, authorities }, svid, clock: this.#clock });
  }

  #errorOf(error: ServiceError, { refusal }: PinnedCredentials): CountersignError {
    const message =
      refusal === undefined
        ? `${this.name}: ${error.details}`
        : `${this.name}: it is not the identity server of this trust domain: ${refusal}: ${reasonCodes[refusal]}; see ca.upstream.addresses and ca.upstream.bundleFile`;
    const code = refusal === undefined ? errorCodeOfGrpcStatus(error.code) : 'unauthenticated';
    return new CountersignError(code, message, { cause: error });
  }

  #problem(what: string): CountersignError {
    return new CountersignError('bad-input', `${this.name}: ${what}`);
  }
}
