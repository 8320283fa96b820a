/**
 * As much of Vault's HTTP API as signing an intermediate takes, over TLS: the PKI engine's sign-intermediate, logins by AppRole and Kubernetes, revoke-self.
 * Certificates are openssl's. What it should do otherwise than Vault, a test says by `answer`.
 */
import { readFileSync } from 'node:fs';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { createServer, type Server } from 'node:https';
import type { AddressInfo } from 'node:net';
import { type CertificateWish, INTERMEDIATE, type OpensslCa, type OpensslCas } from './openssl-ca.ts';

export interface VaultRequest {
  readonly path: string;
  readonly headers: IncomingMessage['headers'];
  readonly body: Record<string, unknown>;
}

interface Answer {
  readonly status: number;
  readonly body?: unknown;
  readonly location?: string;
}

export class VaultServer {
  readonly requests: VaultRequest[] = [];
  /** Tokens that may sign. */
  readonly tokens = new Set(['hvs.root']);
  /** Instead of what Vault would answer; undefined: as Vault. A promise that stays open: no answer. */
  answer: (request: VaultRequest) => Answer | undefined | Promise<Answer> = () => undefined;
  /** As Vault lists them: from the issuer up, as far as it knows. */
  caChain: string[];
  readonly #server: Server;
  readonly #cas: OpensslCas;
  readonly #issuer: OpensslCa;

  private constructor(server: Server, cas: OpensslCas, issuer: OpensslCa, caChain: string[]) {
    this.#server = server;
    this.#cas = cas;
    this.#issuer = issuer;
    this.caChain = caChain;
  }

  /** @param tls its own certificate and key. @param above what stands above the issuer, PEM. */
  static async start(cas: OpensslCas, issuer: OpensslCa, tls: OpensslCa, above: string[] = []): Promise<VaultServer> {
    const server = createServer({ cert: tls.certificate, key: readFileSync(tls.keyFile) });
    const vault = new VaultServer(server, cas, issuer, [issuer.certificate, ...above]);
    server.on('request', (request, response) => void vault.#serve(request, response));
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    return vault;
  }

  get address(): string {
    return `https://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  close(): void {
    this.#server.closeAllConnections();
    this.#server.close();
  }

  /** What `sign-intermediate` gives for a request: parameters are taken from its body, of the CSR only the key. */
  signed(
    body: Record<string, unknown>,
    changes: Partial<Pick<CertificateWish, 'seconds' | 'extensions' | 'csr' | 'beginsInSeconds'>> = {},
  ): Answer {
    const uriSans = body.uri_sans === undefined ? '' : `subjectAltName=URI:${body.uri_sans}\n`;
    const certificate = this.#cas.sign(this.#issuer, {
      ...changes,
      csr: changes.csr ?? String(body.csr),
      seconds: changes.seconds ?? Number.parseInt(String(body.ttl), 10),
      extensions: changes.extensions ?? INTERMEDIATE + uriSans,
      subject: `/O=${body.organization}/CN=${body.common_name}/serialNumber=${body.serial_number}`,
    });
    const data = { certificate, issuing_ca: this.#issuer.certificate, ca_chain: this.caChain, serial_number: '39:dd' };
    return { status: 200, body: { lease_id: '', renewable: false, lease_duration: 0, data, auth: null } };
  }

  async #serve(incoming: IncomingMessage, response: ServerResponse): Promise<void> {
    const chunks: Buffer[] = [];
    for await (const chunk of incoming) chunks.push(chunk as Buffer);
    const request: VaultRequest = {
      path: incoming.url ?? '',
      headers: incoming.headers,
      body: JSON.parse(Buffer.concat(chunks).toString('utf8')) as Record<string, unknown>,
    };
    this.requests.push(request);
    const { status, body, location } = (await this.answer(request)) ?? this.#asVault(request);
    response.writeHead(status, {
      'Content-Type': 'application/json',
      ...(location === undefined ? {} : { Location: location }),
    });
    response.end(body === undefined ? '' : typeof body === 'string' ? body : JSON.stringify(body));
  }

  #asVault({ path, headers, body }: VaultRequest): Answer {
    const refuse = (status: number, error: string): Answer => ({ status, body: { errors: [error] } });
    const logIn = (): Answer => {
      const token = `hvs.login${this.requests.length}`;
      this.tokens.add(token);
      return { status: 200, body: { auth: { client_token: token, lease_duration: 3600, renewable: true } } };
    };
    const token = String(headers['x-vault-token']);
    switch (path) {
      case '/v1/auth/approle/login':
        return body.role_id === 'role-1' && body.secret_id === 'secret-1'
          ? logIn()
          : refuse(400, 'invalid role or secret ID');
      case '/v1/auth/kubernetes/login':
        return body.role === 'countersign' && body.jwt === 'service-account-jwt'
          ? logIn()
          : refuse(403, 'permission denied');
      case '/v1/auth/token/revoke-self':
        this.tokens.delete(token);
        return { status: 204 };
      case '/v1/pki/root/sign-intermediate':
      case '/v1/pki/issuer/second/sign-intermediate':
        return this.tokens.has(token) ? this.signed(body) : refuse(403, 'permission denied');
      default:
        return refuse(404, `no handler for route "${path.slice('/v1/'.length)}". route entry not found.`);
    }
  }
}
