/** Policies offline: are they right, what would they say of a packet, what does a change change, do they do what is expected. */
import { type Command, Option } from 'commander';
import { protocolNames } from '../../agent/protocols.ts';
import { withOutput } from '../context.ts';

const actions = () => import('../policy/actions.ts');
type Actions = Awaited<ReturnType<typeof actions>>;

function withL7(command: Command): Command {
  return withOutput(command).addOption(
    new Option('--l7 <handling>', 'layer 7 rules').choices(['refuse', 'ignore-with-warning']).default('refuse'),
  );
}

function withNode(command: Command): Command {
  return withL7(command).option('--node-labels <labels>', 'labels of the node itself, such as type=worker');
}

/** Under `countersign policy`, beside what is asked of the agent. */
export function addPolicyTools(policy: Command): void {
  withL7(
    policy
      .command('lint <paths...>')
      .description('check policy files and folders without an agent: problems, and rules that have no effect'),
  ).action(async (...args: Parameters<Actions['lint']>) => (await actions()).lint(...args));
  withNode(
    policy
      .command('explain <from> <to>')
      .description('what policy files say of a packet, and every rule that has a part in it; without an agent'),
  )
    .requiredOption('--policies <paths...>', 'policy files and folders')
    .option('--identities <file>', 'a RegistrationEntries file: who FROM and TO may be')
    .option('--port <port>', 'destination port; the message type of ICMP', '0')
    .option('--protocol <name>', protocolNames.join(', '), 'tcp')
    .addHelpText(
      'after',
      '\nFROM and TO are entries, SPIFFE IDs, labels (app=web,env=prod), addresses outside the cluster, or host, ' +
        'remote-node, world. Exit status 1 when the answer is no.',
    )
    .action(async (...args: Parameters<Actions['explain']>) => (await actions()).explain(...args));
  withNode(
    policy
      .command('diff <old> <new>')
      .description('which verdicts change from one file or folder to another; exit status 1 if any does'),
  )
    .requiredOption('--identities <file>', 'a RegistrationEntries file: between whom')
    .action(async (...args: Parameters<Actions['diff']>) => (await actions()).diff(...args));
  withOutput(
    policy
      .command('test <file>')
      .description(
        'compare policies with a file of expected verdicts (kind: PolicyTest); exit status 1 if one is not met',
      ),
  ).action(async (...args: Parameters<Actions['test']>) => (await actions()).test(...args));
}
