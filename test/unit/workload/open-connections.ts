/** Opens argv[3] connections to argv[2], one after the other, says so and keeps them until its input ends. */
import { connect, type Socket } from 'node:net';

const [, , path, count] = process.argv as [string, string, string, string];
const sockets: Socket[] = [];
while (sockets.length < Number(count)) {
  const socket = connect(path);
  // the listener's queue is full for a moment (EAGAIN): once more
  const opened = await new Promise<boolean>((resolve) => {
    socket.on('connect', () => resolve(true));
    socket.on('error', () => resolve(false));
  });
  if (opened) sockets.push(socket);
}
process.stdout.write(`opened ${sockets.length}\n`);
process.stdin.on('end', () => process.exit(0)).resume();
