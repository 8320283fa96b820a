/**
 * docker: selectors as SPIRE's attestor writes them: labels, environment and image of the caller's container, asked of the Docker
 * Engine API on its unix socket. The container's id comes from control groups, never from the caller.
 */
import { request } from 'node:http';
import { z } from 'zod';
import type { WorkloadAttestor } from './attestor.ts';
import { containerOf } from './container.ts';

const MAX_ANSWER_BYTES = 4 * 1024 * 1024;
const MAX_CACHED = 1_024;

/** What is read of GET /containers/{id}/json. */
const inspection = z.object({
  Id: z.string(),
  /** Digest of the image's configuration. */
  Image: z.string().default(''),
  Config: z.object({
    Image: z.string().default(''),
    Labels: z.record(z.string(), z.string()).nullish(),
    Env: z.array(z.string()).nullish(),
  }),
});

export function createDockerAttestor(socketPath: string): WorkloadAttestor {
  /** What is read of a container does not change while it exists, and its id is never another's. */
  const known = new Map<string, readonly string[]>();
  return {
    type: 'docker',
    async selectorsOf(caller, _wanted, signal) {
      const container = await containerOf(caller);
      if (container === undefined || (container.runtime ?? 'docker') !== 'docker') return [];
      const cached = known.get(container.id);
      if (cached !== undefined) return cached;
      const selectors = await inspect(socketPath, container.id, signal);
      if (selectors === undefined) return [];
      if (known.size >= MAX_CACHED) known.delete(known.keys().next().value!);
      known.set(container.id, selectors);
      return selectors;
    },
  };
}

/** undefined: the engine does not have this container. @throws when it does not answer, or not as its API says. */
async function inspect(socketPath: string, id: string, signal: AbortSignal): Promise<string[] | undefined> {
  const { status, body } = await get(socketPath, `/containers/${id}/json`, signal);
  if (status === 404) return undefined;
  if (status !== 200) throw new Error(`the Docker Engine API answered with status ${status}`);
  const answer = inspection.safeParse(parsed(body));
  if (!answer.success || answer.data.Id !== id) throw new Error('the Docker Engine API did not describe the container');
  const { Image, Config } = answer.data;
  return [
    ...Object.entries(Config.Labels ?? {}).map(([label, value]) => `docker:label:${label}:${value}`),
    ...(Config.Env ?? []).map((variable) => `docker:env:${variable}`),
    ...(Config.Image === '' ? [] : [`docker:image_id:${Config.Image}`]),
    ...(Image === '' ? [] : [`docker:image_config_digest:${Image}`]),
  ];
}

function get(socketPath: string, path: string, signal: AbortSignal): Promise<{ status: number; body: string }> {
  return new Promise((resolve, reject) => {
    const sent = request({ socketPath, path, signal, headers: { host: 'docker' } }, (response) => {
      const chunks: Buffer[] = [];
      let size = 0;
      response.on('data', (chunk: Buffer) => {
        size += chunk.length;
        if (size > MAX_ANSWER_BYTES) sent.destroy(new Error('the answer of the Docker Engine API is too large'));
        else chunks.push(chunk);
      });
      response.on('end', () => resolve({ status: response.statusCode ?? 0, body: Buffer.concat(chunks).toString() }));
      response.on('error', reject);
    });
    sent.on('error', reject);
    sent.end();
  });
}

/** What JSON.parse says of a bad text quotes it, and there are secrets in a container's environment. */
function parsed(body: string): unknown {
  try {
    return JSON.parse(body);
  } catch {
    return undefined;
  }
}
