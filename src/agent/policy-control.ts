/**
 * The policies in force on this node: from the directory through the compiler to the kernel, and as decisions for others.
 * Other files flip the kernel's policy as a whole; other identities or endpoints only change what they concern.
 */
import type { CountersignError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import type { Datapath } from '../datapath/datapath.ts';
import type { AuditSink } from '../model/audit-event.ts';
import type { AuthType, DatapathSignal } from '../model/datapath.ts';
import type { IdentityTable, Labels } from '../model/identity.ts';
import type { IpAddress, SecurityIdentity } from '../model/ids.ts';
import { compilePolicy, recompile } from '../policy/compile.ts';
import type { CompiledPolicy, PolicyRule } from '../policy/compiled.ts';
import { type LoadedPolicies, loadPolicies, type PolicyWatch, watchPolicies } from '../policy/load.ts';
import type { Policy } from '../policy/rules.ts';

export interface PolicyControlOptions {
  readonly directory: string;
  readonly l7: 'refuse' | 'ignore-with-warning';
  readonly nodeLabels: Labels;
  readonly datapath: Pick<Datapath, 'setPolicy' | 'updatePolicy'>;
  readonly identities: Pick<IdentityTable, 'rows'>;
  /** Security identities of this node's endpoints. */
  locals(): readonly SecurityIdentity[];
  /** After the kernel has the new policy. `of`: whom it concerns; left out: anybody. */
  changed(of?: ReadonlySet<SecurityIdentity>): void;
  readonly audit: AuditSink;
  readonly log: Logger;
}

/** What one directory asks for in a hurry is told in full by `policy list`. */
const WARNINGS_TOLD = 20;
/** What opens a flow of ICMP and ICMPv6: to policy the message's type is its port. */
const ECHO_REQUEST: Readonly<Record<number, number>> = { 1: 8, 58: 128 };

export class PolicyControl {
  readonly #options: PolicyControlOptions;
  readonly #watch: PolicyWatch;
  #loaded: LoadedPolicies;
  #compiled: CompiledPolicy;
  /** The kernel has what #compiled says. */
  #inForce = false;
  #problem: string | undefined;

  /** @throws CountersignError bad-input when the policies at the start are not valid: nothing starts on half a policy */
  constructor(options: PolicyControlOptions) {
    this.#options = options;
    const { directory, l7, nodeLabels } = options;
    this.#loaded = loadPolicies(directory, { l7 });
    this.#compiled = compilePolicy(this.#loaded.policies, [], [], { nodeLabels });
    this.#tellWarnings();
    this.#watch = watchPolicies(
      directory,
      (loaded) => this.#take(loaded),
      (problem) => this.#refuse(problem),
      { since: this.#loaded.revision, l7 },
    );
  }

  /**
   * Compiles for the identities and endpoints there are now and gives it to the kernel. `of`: whose rows changed; left out:
   * anybody's. @throws Error: what was in force stays
   */
  apply(of?: ReadonlySet<SecurityIdentity>): void {
    const { identities, datapath } = this.#options;
    if (!this.#inForce) {
      this.#flip(this.#loaded);
      return;
    }
    const { compiled, delta } = recompile(this.#compiled, identities.rows(), this.#locals());
    this.#compiled = compiled;
    // If the kernel takes a part of it only, the next change writes the whole.
    this.#inForce = false;
    datapath.updatePolicy(delta);
    this.#inForce = true;
    this.#options.changed(of);
  }

  decide(from: SecurityIdentity, to: SecurityIdentity, protocol: number, port: number) {
    return this.#compiled.decide(from, to, protocol, port);
  }

  authTypesOf(a: SecurityIdentity, b: SecurityIdentity): readonly AuthType[] {
    return this.#compiled.authTypesOf(a, b);
  }

  /** Of an address that is no workload's and no node's: a CIDR identity, or the world's. */
  identityOfAddress(address: IpAddress): SecurityIdentity {
    return this.#compiled.identityOfAddress(address);
  }

  /** Identities that an endpoint of this node must authenticate with. */
  requiredPeers(): readonly SecurityIdentity[] {
    const types = ['spiffe', 'spiffe-connection'] as const;
    return [...new Set(types.flatMap((authType) => this.#compiled.requiredPeers(authType)))];
  }

  rule(index: number): PolicyRule | undefined {
    return index === 0 ? undefined : this.#compiled.rules[index];
  }

  /**
   * "file:line policy" of the rule that decided, for people. The kernel does not know which rule of the other side's policy
   * asked for a proof: that is found here.
   */
  ruleOf(signal: DatapathSignal): string | undefined {
    const rule = this.rule(signal.rule) ?? this.rule(this.#ruleThatAsks(signal));
    return rule === undefined ? undefined : `${rule.file}:${rule.line} ${rule.policy}`;
  }

  #ruleThatAsks(signal: DatapathSignal): number {
    const { localIdentity, remoteIdentity, protocol, direction, localPort, remotePort, authType } = signal;
    if (authType === 'none') return 0;
    const [from, to, port] =
      direction === 'egress' ? [localIdentity, remoteIdentity, remotePort] : [remoteIdentity, localIdentity, localPort];
    const decision = this.#compiled.decide(from, to, protocol, ECHO_REQUEST[protocol] ?? port);
    return decision.authType === authType ? decision.rule : 0;
  }

  view() {
    const { policies, warnings } = this.#loaded;
    return {
      policies: policies.length,
      entries: this.#compiled.entryCount,
      observing: policies.filter((policy) => policy.enforcement === 'observe').map(nameOf),
      // Directions in which they select this node itself.
      node: (['ingress', 'egress'] as const).filter((direction) => this.#compiled.selectsHost[direction]),
      warnings: warnings.map(({ file, line, message }) => `${file}:${line}: ${message}`),
      allowsMore: warnings.some(({ allowsMore }) => allowsMore),
      ...(this.#problem === undefined ? {} : { problem: this.#problem }),
    };
  }

  rules() {
    return this.#compiled.rules.flatMap((rule, index) => (index === 0 ? [] : [{ rule: index, ...rule }]));
  }

  warnings() {
    return this.#loaded.warnings;
  }

  /** Reads the directory now. Resolves when what it holds is in force, or refused. */
  async reload() {
    await this.#watch.check();
    return this.view();
  }

  close(): void {
    this.#watch.close();
  }

  #locals(): SecurityIdentity[] {
    return [...new Set(this.#options.locals())];
  }

  #flip(loaded: LoadedPolicies): void {
    const { identities, datapath, nodeLabels, changed } = this.#options;
    const compiled = compilePolicy(loaded.policies, identities.rows(), this.#locals(), { nodeLabels });
    datapath.setPolicy(compiled.tables);
    this.#loaded = loaded;
    this.#compiled = compiled;
    this.#inForce = true;
    changed();
  }

  #take(loaded: LoadedPolicies): void {
    this.#flip(loaded);
    this.#problem = undefined;
    this.#options.audit.emit({
      kind: 'policy.changed',
      detail: {
        policies: loaded.policies.length,
        entries: this.#compiled.entryCount,
        observing: loaded.policies.filter((policy) => policy.enforcement === 'observe').length,
        warnings: loaded.warnings.length,
      },
    });
    this.#tellWarnings();
  }

  #tellWarnings(): void {
    const { audit, log } = this.#options;
    for (const { file, line, message } of this.#loaded.warnings.slice(0, WARNINGS_TOLD)) {
      log.warn({ file, line }, message);
      audit.emit({ kind: 'policy.warning', policy: `${file}:${line}`, detail: { warning: message } });
    }
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

function nameOf(policy: Policy): string {
  return policy.namespace === undefined ? policy.name : `${policy.namespace}/${policy.name}`;
}
