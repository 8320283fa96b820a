/**
 * A thief: the first process (argv[3] absent) connects to argv[2], gives the connection to a child and ends. The child then
 * asks on it, as gRPC by hand, and prints the status it is given and whether an SVID came with it.
 */
import { spawn } from 'node:child_process';
import { connect as connectHttp2 } from 'node:http2';
import { connect, Socket } from 'node:net';

const [, script, socketPath, parent] = process.argv as [string, string, string, string | undefined];

if (parent === undefined) {
  const socket = connect(socketPath, () => {
    const args = [script, socketPath, String(process.pid)];
    const child = spawn(process.execPath, args, { stdio: ['ignore', 'inherit', 'inherit', socket], detached: true });
    child.once('spawn', () => process.exit(0));
  });
} else {
  const ask = () => {
    const socket = new Socket({ fd: 3, readable: true, writable: true });
    const session = connectHttp2('http://localhost', { createConnection: () => socket });
    session.on('error', (error) => console.log(JSON.stringify({ error: error.message })));
    const call = session.request({
      ':method': 'POST',
      ':path': '/SpiffeWorkloadAPI/FetchX509SVID',
      'content-type': 'application/grpc',
      te: 'trailers',
      'workload.spiffe.io': 'true',
    });
    let bytes = 0;
    const tell = (headers: Record<string, unknown>) => {
      if (headers['grpc-status'] === undefined) return;
      console.log(JSON.stringify({ status: Number(headers['grpc-status']), bytes }));
      process.exit(0);
    };
    call.on('response', tell);
    call.on('trailers', tell);
    call.on('data', (data: Buffer) => {
      bytes += data.length;
      console.log(JSON.stringify({ status: 0, bytes }));
      process.exit(0);
    });
    call.end(Buffer.alloc(5));
  };
  const wait = () => (process.ppid === Number(parent) ? setTimeout(wait, 5) : ask());
  wait();
}
