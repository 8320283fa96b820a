/** The part of the settings that says where the server's state is. */
import { z } from 'zod';
import { absolutePath } from '../../src/base/config-types.ts';

const endpoint = z
  .string()
  .regex(
    /^https?:\/\/([A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:]{2,39}\]):[0-9]{1,5}$/,
    'must be http://HOST:PORT or https://HOST:PORT; correct it',
  );

const LOOPBACK = /^http:\/\/(localhost|127(\.[0-9]{1,3}){3}|\[::1\]):/;

const etcdSchema = z
  .strictObject({
    type: z.literal('etcd'),
    endpoints: z.array(endpoint).min(1).max(16),
    /** All keys begin with it; servers of one trust domain share it, others must not. */
    prefix: z
      .string()
      .regex(/^\/[A-Za-z0-9._/-]{0,254}\/$/, 'must begin and end with /; correct it')
      .default('/countersign/'),
    tls: z.strictObject({ caFile: absolutePath, certFile: absolutePath, keyFile: absolutePath }).optional(),
    auth: z.strictObject({ username: z.string().min(1).max(256), passwordFile: absolutePath }).optional(),
    /** A leader that etcd has not heard of for so long may be followed by another one. */
    leaseSeconds: z.number().int().min(2).max(60).default(10),
  })
  .superRefine(({ endpoints, tls }, context) => {
    endpoints.forEach((text, i) => {
      // who can change what is on the way to etcd can do what the server can
      const message =
        'http: only to this machine, as whoever is on the way could change everything; use https: and tls';
      if (text.startsWith('http:') && !LOOPBACK.test(text))
        context.addIssue({ code: 'custom', path: ['endpoints', i], message });
    });
    const isSecure = endpoints.every((text) => text.startsWith('https:'));
    if (tls !== undefined && !isSecure)
      context.addIssue({ code: 'custom', path: ['endpoints'], message: 'all must begin with https: where tls is set' });
    if (tls === undefined && endpoints.some((text) => text.startsWith('https:')))
      context.addIssue({ code: 'custom', path: ['tls'], message: 'https: endpoints need it; add it' });
  });
export type EtcdConfig = z.infer<typeof etcdSchema>;

export const datastoreSchema = z
  .discriminatedUnion('type', [z.strictObject({ type: z.literal('sqlite') }), etcdSchema])
  .prefault({ type: 'sqlite' });
