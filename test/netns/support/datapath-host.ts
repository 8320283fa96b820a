/** A process that holds a real datapath inside a node's namespace and does what the test says over IPC. */
import { native } from '../../../native/index.ts';
import { createLogger } from '../../../src/base/log.ts';
import { systemClock } from '../../../src/datapath/clock.ts';
import { type DatapathOptions, openDatapath } from '../../../src/datapath/datapath.ts';

export interface HostRequest {
  readonly id: number;
  /** "setPolicy", "auth.put" … */
  readonly method: string;
  readonly args: readonly unknown[];
}

type Methods = Record<string, unknown>;

native().setParentDeathSignal(9);
const send = (message: object) => process.send!(message);
const options = JSON.parse(process.argv[2]!) as Omit<DatapathOptions, 'clock' | 'log' | 'onSignal'>;
const datapath = openDatapath({
  ...options,
  clock: systemClock(),
  log: createLogger('datapath-host', 'warn'),
  onSignal: (signal) => send({ signal }),
});
send({ ready: datapath.attachMode });

process.on('message', async (request: HostRequest) => {
  const { id, method, args } = request;
  try {
    const names = method.split('.');
    const name = names.pop()!;
    const target = names.reduce((object, key) => object[key] as Methods, datapath as unknown as Methods);
    const result = await (target[name] as (...a: unknown[]) => unknown).apply(target, [...args]);
    send({ id, result });
  } catch (error) {
    send({ id, error: String(error) });
  }
});
