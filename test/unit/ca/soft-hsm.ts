/** SoftHSM: a PKCS#11 token in files, in a directory of its own. */
import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readdirSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

export class SoftHsm {
  static readonly module = '/usr/lib/softhsm/libsofthsm2.so';
  static readonly pin = '87654321';
  readonly home = mkdtempSync(join(tmpdir(), 'countersign-hsm-'));
  readonly pinFile = join(this.home, 'pin');

  /** With one token, `ca`. SoftHSM reads where it is from this process's environment. */
  constructor() {
    mkdirSync(join(this.home, 'tokens'));
    const settings = join(this.home, 'softhsm2.conf');
    writeFileSync(
      settings,
      `directories.tokendir = ${this.home}/tokens\nobjectstore.backend = file\nlog.level = ERROR\n`,
    );
    process.env.SOFTHSM2_CONF = settings;
    writeFileSync(this.pinFile, `${SoftHsm.pin}\n`, { mode: 0o600 });
    this.initToken('ca');
  }

  /** What `ca.keys` says of it. */
  get config() {
    return { type: 'pkcs11', module: SoftHsm.module, token: 'ca', pinFile: this.pinFile } as const;
  }

  initToken(label: string): void {
    const pins = ['--so-pin', '12345678', '--pin', SoftHsm.pin];
    execFileSync('softhsm2-util', ['--init-token', '--free', '--label', label, ...pins]);
  }

  /** The token is pulled out. The function puts it back. */
  unplug(): () => void {
    const [name] = readdirSync(join(this.home, 'tokens'));
    const place = join(this.home, 'tokens', name!);
    const away = join(this.home, 'away');
    renameSync(place, away);
    return () => renameSync(away, place);
  }

  /** What another program, with the PIN, can do with the token. */
  tool(...args: string[]): string {
    const login = ['--module', SoftHsm.module, '--token-label', 'ca', '--login', '--pin', SoftHsm.pin];
    return execFileSync('pkcs11-tool', [...login, ...args], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });
  }

  remove(): void {
    rmSync(this.home, { recursive: true, force: true });
    delete process.env.SOFTHSM2_CONF;
  }
}
