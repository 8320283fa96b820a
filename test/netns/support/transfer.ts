/**
 * Moves bytes over TCP and says whether all of them came. `transfer.ts receive PORT` answers each connection, once its
 * sender has finished, with the SHA-256 of what came; `transfer.ts send ADDRESS PORT BYTES` exits with 0 if that is the one of what it sent.
 */
import { createHash, randomBytes } from 'node:crypto';
import { connect, createServer } from 'node:net';

const [, , role, ...args] = process.argv;

function receive(port: number): void {
  createServer({ allowHalfOpen: true }, (socket) => {
    const hash = createHash('sha256');
    socket.on('data', (chunk) => hash.update(chunk));
    socket.on('end', () => socket.end(hash.digest('hex')));
    socket.on('error', () => socket.destroy());
  }).listen(port, '::');
}

function send(address: string, port: number, bytes: number): void {
  const data = randomBytes(bytes);
  const socket = connect({ host: address, port, allowHalfOpen: true }, () => socket.end(data));
  let answer = '';
  socket.on('data', (chunk) => {
    answer += chunk.toString();
  });
  socket.on('end', () => process.exit(answer === createHash('sha256').update(data).digest('hex') ? 0 : 1));
  socket.on('error', () => process.exit(1));
}

if (role === 'receive') receive(Number(args[0]));
else send(args[0]!, Number(args[1]), Number(args[2]));
