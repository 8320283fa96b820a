// The backend's HTTP server. Arguments: uid, port. Answers 200 with a line that repeats the request's marker.
import { createServer } from 'node:http';
import { dropTo } from './drop-to.ts';

const [uid, port] = process.argv.slice(2).map(Number) as [number, number];
const server = createServer((request, response) => {
  const marker = request.headers['x-marker'] ?? '';
  response.setHeader('content-type', 'text/plain');
  response.end(`hello from backend ${marker}\n`);
});
server.listen(port, '::', () => {
  dropTo(uid);
  console.log('listening');
});
