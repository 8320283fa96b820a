/** The policies in force on this node: from the directory through the compiler to the kernel, and as decisions for others. */
import type { CountersignError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import type { Datapath } from '../datapath/datapath.ts';
import type { AuditSink } from '../model/audit-event.ts';
import type { AuthType } from '../model/datapath.ts';
import type { IdentityTable } from '../model/identity.ts';
import type { SecurityIdentity } from '../model/ids.ts';
import { type CompiledPolicy, compilePolicy, type PolicyRule } from '../policy/compile.ts';
import { type LoadedPolicies, loadPolicies, type PolicyWatch, watchPolicies } from '../policy/load.ts';

export interface PolicyControlOptions {
  readonly directory: string;
  readonly datapath: Datapath;
  readonly identities: IdentityTable;
  /** Security identities of this node's endpoints. */
  locals(): readonly SecurityIdentity[];
  /** After the kernel has the new policy. */
  changed(): void;
  readonly audit: AuditSink;
  readonly log: Logger;
}

export class PolicyControl {
  readonly #options: PolicyControlOptions;
  readonly #watch: PolicyWatch;
  #loaded: LoadedPolicies;
  #compiled: CompiledPolicy;
  #problem: string | undefined;
  #required: SecurityIdentity[] = [];

  /** @throws CountersignError bad-input when the policies at the start are not valid: nothing starts on half a policy */
  constructor(options: PolicyControlOptions) {
    this.#options = options;
    this.#loaded = loadPolicies(options.directory);
    this.#compiled = compilePolicy(this.#loaded.policies, [], []);
    this.#watch = watchPolicies(
      options.directory,
      (loaded) => this.#take(loaded),
      (problem) => this.#refuse(problem),
      { since: this.#loaded.revision },
    );
  }

  /** Compiles for the identities and endpoints there are now and gives it to the kernel. */
  apply(): void {
    const { identities, datapath, locals, changed } = this.#options;
    const compiled = compilePolicy(this.#loaded.policies, identities.rows(), [...new Set(locals())]);
    datapath.setPolicy(compiled.entries);
    this.#compiled = compiled;
    const own = new Set(locals());
    this.#required = compiled
      .requiredPairs()
      .flatMap(({ local, remote, authType }) => (authType === 'spiffe' ? [own.has(local) ? remote : local] : []));
    changed();
  }

  decide(from: SecurityIdentity, to: SecurityIdentity, protocol: number, port: number) {
    return this.#compiled.decide(from, to, protocol, port);
  }

  authTypesOf(a: SecurityIdentity, b: SecurityIdentity): readonly AuthType[] {
    return this.#compiled.authTypesOf(a, b);
  }

  /** Identities that an endpoint of this node must authenticate with. */
  requiredPeers(): SecurityIdentity[] {
    return [...new Set(this.#required)];
  }

  rule(index: number): PolicyRule | undefined {
    return index === 0 ? undefined : this.#compiled.rules[index];
  }

  /** "file:line policy", for people. */
  describe(index: number): string | undefined {
    const rule = this.rule(index);
    return rule === undefined ? undefined : `${rule.file}:${rule.line} ${rule.policy}`;
  }

  view() {
    return {
      policies: this.#loaded.policies.length,
      entries: this.#compiled.entries.length,
      ...(this.#problem === undefined ? {} : { problem: this.#problem }),
    };
  }

  rules() {
    return this.#compiled.rules.flatMap((rule, index) => (index === 0 ? [] : [{ rule: index, ...rule }]));
  }

  /** Reads the directory now. Resolves when what it holds is in force, or refused. */
  async reload() {
    await this.#watch.check();
    return this.view();
  }

  close(): void {
    this.#watch.close();
  }

  #take(loaded: LoadedPolicies): void {
    this.#loaded = loaded;
    this.#problem = undefined;
    this.apply();
    this.#options.audit.emit({
      kind: 'policy.changed',
      detail: { policies: loaded.policies.length, entries: this.#compiled.entries.length },
    });
  }

  #refuse(problem: CountersignError): void {
    this.#problem = problem.message;
    this.#options.audit.emit({
      kind: 'policy.refused',
      reason: 'POLICY_INVALID',
      detail: { problem: problem.message },
    });
    this.#options.log.warn({ problem: problem.message }, 'the policy files have a problem; the policies in force stay');
  }
}
