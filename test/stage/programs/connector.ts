// Connects to each address in turn, once, and prints the ms from SYN to connected as a JSON list (null: no connection in 5 s).
// Arguments: port, addresses separated by commas.
import { connect } from 'node:net';

const [port = '', addresses = ''] = process.argv.slice(2);

function once(host: string, to: number): Promise<number | null> {
  return new Promise((resolve) => {
    const started = performance.now();
    const socket = connect({ host, port: to });
    const end = (ms: number | null): void => {
      socket.destroy();
      resolve(ms);
    };
    socket.setTimeout(5000, () => end(null));
    socket.once('error', () => end(null));
    socket.once('connect', () => end(performance.now() - started));
  });
}

// The first connect of a process compiles and allocates: done once against a closed local port, and not counted.
await once('127.0.0.1', 9);
const times: (number | null)[] = [];
for (const host of addresses.split(',')) times.push(await once(host, Number(port)));
console.log(JSON.stringify(times));
