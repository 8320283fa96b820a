/**
 * WireGuard in user space: a wireguard-go process in a session of its own, so that it outlives the agent and is found again
 * by its socket. While the agent lives, it is started anew when it dies.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, mkdirSync, openSync, readFileSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { asError, CountersignError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import type { DeviceChange, DeviceState, WireguardDevice } from './device.ts';
import { publicKeyOfRaw } from './key-file.ts';
import type { Links } from './rtnetlink.ts';
import { decodeGet, encodeSet, GET, UapiConnection } from './uapi.ts';

/** Fixed in wireguard-go, and where `wg show` looks. */
const SOCKET_DIRECTORY = '/var/run/wireguard';
const START_DEADLINE_MS = 5_000;
const MAX_LOG_BYTES = 1 << 20;
const MAX_RESTART_DELAY_MS = 30_000;

export interface WireguardGoOptions {
  readonly device: string;
  /** Its log file. */
  readonly runDir: string;
  /** Default: found in PATH. */
  readonly program?: string;
  readonly links: Links;
  readonly log: Logger;
  /** After a restart the device is empty, down, and has another ifindex. Rejects: it is tried again. */
  readonly onRestarted: () => Promise<void>;
}

export async function openWireguardGo(options: WireguardGoOptions): Promise<WireguardDevice> {
  const found = await connectTo(options.device);
  const link = options.links.get(options.device);
  if (found === undefined && link !== undefined) {
    throw new CountersignError(
      'already-exists',
      `a device ${options.device} (${link.kind ?? 'unknown kind'}) exists and is not ours; set encryption.wireguard.device to another name`,
    );
  }
  if (found !== undefined && link !== undefined) {
    options.log.info({ device: options.device }, 'found wireguard-go running');
    return new WireguardGo(options, found, link.ifindex);
  }
  // A socket without a device: the process is on its way out.
  found?.close();
  const started = await start(options);
  return new WireguardGo(options, started.connection, started.ifindex);
}

class WireguardGo implements WireguardDevice {
  readonly implementation = 'wireguard-go';
  readonly #options: WireguardGoOptions;
  #connection: UapiConnection;
  #ifindex: number;
  #closed = false;

  constructor(options: WireguardGoOptions, connection: UapiConnection, ifindex: number) {
    this.#options = options;
    this.#connection = connection;
    this.#ifindex = ifindex;
    this.#watch();
  }

  get ifindex(): number {
    return this.#ifindex;
  }

  async apply(change: DeviceChange): Promise<void> {
    await this.#connection.request(encodeSet(change));
  }

  async read(): Promise<DeviceState> {
    return decodeGet(await this.#connection.request(GET), publicKeyOfRaw);
  }

  async close(): Promise<void> {
    this.#closed = true;
    this.#connection.close();
  }

  /** Without its device the process ends by itself and takes its socket along. */
  async destroy(): Promise<void> {
    this.#closed = true;
    this.#options.links.delete(this.#ifindex);
    // Nothing else may keep an uninstall's process alive: the timer does, until the answer is there.
    const answered = new AbortController();
    const { signal } = answered;
    await Promise.race([this.#connection.ended, delay(2_000, undefined, { signal }).catch(() => {})]);
    answered.abort();
    this.#connection.close();
    rmSync(socketPath(this.#options.device), { force: true });
  }

  #watch(): void {
    void this.#connection.ended.then(() => (this.#closed ? undefined : this.#restart()));
  }

  async #restart(): Promise<void> {
    const { log, device } = this.#options;
    log.error({ device }, 'wireguard-go ended; starting it again');
    for (let wait = 100; !this.#closed; wait = Math.min(wait * 2, MAX_RESTART_DELAY_MS)) {
      try {
        // It may live on and have closed the connection only.
        const connection = await connectTo(device);
        const link = this.#options.links.get(device);
        const up = connection && link ? { connection, ifindex: link.ifindex } : await start(this.#options);
        this.#connection = up.connection;
        this.#ifindex = up.ifindex;
        await this.#options.onRestarted();
        if (this.#closed) return;
        log.info({ device }, 'wireguard-go runs again');
        return this.#watch();
      } catch (error) {
        log.error({ device, err: asError(error), nextTryMs: wait }, 'wireguard-go could not be started');
        this.#connection.close();
        await delay(wait, undefined, { ref: false });
      }
    }
  }
}

function socketPath(device: string): string {
  return join(SOCKET_DIRECTORY, `${device}.sock`);
}

async function connectTo(device: string): Promise<UapiConnection | undefined> {
  try {
    return await UapiConnection.open(socketPath(device));
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT' || code === 'ECONNREFUSED') return undefined;
    throw new CountersignError('unavailable', `${socketPath(device)}: ${code}; is the agent root?`, { cause: error });
  }
}

/** Neither arguments nor environment hold a secret: keys go through the socket. */
async function start(options: WireguardGoOptions): Promise<{ connection: UapiConnection; ifindex: number }> {
  mkdirSync(options.runDir, { recursive: true, mode: 0o700 });
  const logPath = join(options.runDir, `${options.device}.log`);
  const log = openSync(logPath, sizeOf(logPath) > MAX_LOG_BYTES ? 'w' : 'a', 0o600);
  const program = options.program ?? 'wireguard-go';
  let child: ChildProcess;
  let failure: string | undefined;
  try {
    child = spawn(program, ['-f', options.device], {
      detached: true,
      stdio: ['ignore', log, log],
      cwd: '/',
      env: { PATH: process.env.PATH, LOG_LEVEL: 'error' },
    });
  } finally {
    closeSync(log);
  }
  child.unref();
  child.once('error', (error) => {
    const { code } = error as NodeJS.ErrnoException;
    failure = code === 'ENOENT' ? `${program} is not installed` : error.message;
  });
  child.once('exit', (status, signal) => {
    failure ??= `it ended with ${signal ?? `status ${status}`}: ${lastLine(logPath)}`;
  });
  const deadline = performance.now() + START_DEADLINE_MS;
  while (failure === undefined && performance.now() < deadline) {
    await delay(2);
    const connection = await connectTo(options.device);
    if (connection === undefined) continue;
    const link = options.links.get(options.device);
    if (link !== undefined) return { connection, ifindex: link.ifindex };
    connection.close();
  }
  if (child.pid !== undefined) child.kill();
  throw new CountersignError(
    'unavailable',
    `wireguard-go could not be started: ${failure ?? `no socket within ${START_DEADLINE_MS} ms`}; see ${logPath}`,
  );
}

function sizeOf(path: string): number {
  return statSync(path, { throwIfNoEntry: false })?.size ?? 0;
}

function lastLine(path: string): string {
  return readFileSync(path, 'utf8').trimEnd().split('\n').at(-1)?.slice(0, 200) ?? '';
}
