/**
 * Containers named by a cgroup path, as Docker, containerd and CRI-O make them: with the cgroupfs and the systemd driver, alone
 * and under the kubelet. Each form is matched whole, from where the path begins; an id in the middle of something else is nobody's.
 */
export interface PathContainer {
  /** 64 hex digits. */
  readonly id: string;
  /** undefined: the path does not tell (a pod's container with the cgroupfs driver). */
  readonly runtime: 'docker' | 'containerd' | 'cri-o' | undefined;
  /** Of the container's own directory, from the root. */
  readonly path: string;
}

const ID = '(?<id>[0-9a-f]{64})';
/** A pod's UID, or 32 hex digits for a static pod. */
const POD = '[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32}';
const POD_OF_SLICE = POD.replaceAll('-[', '_[');

const FORMS: readonly { pattern: RegExp; runtime?: PathContainer['runtime'] }[] = [
  { pattern: new RegExp(`^/docker/${ID}`), runtime: 'docker' },
  { pattern: new RegExp(`^/system\\.slice/docker-${ID}\\.scope`), runtime: 'docker' },
  // containerd alone: "/<namespace>/<id>" (ctr, nerdctl), or nerdctl's scope
  { pattern: new RegExp(`^/(?:default|k8s\\.io)/${ID}`), runtime: 'containerd' },
  { pattern: new RegExp(`^/system\\.slice/nerdctl-${ID}\\.scope`), runtime: 'containerd' },
  // the kubelet's pods, driver cgroupfs; CRI-O writes its name before the id
  { pattern: new RegExp(`^(?:/kubelet)?/kubepods(?:/burstable|/besteffort)?/pod(?:${POD})/(?<runtime>crio-)?${ID}`) },
  // driver systemd: each slice's name repeats those of the slices above it; in kind they hang below kubelet.slice
  ...['', 'kubelet-'].flatMap((prefix) =>
    ['', '-burstable', '-besteffort'].map((qos) => {
      const root = `${prefix}kubepods`;
      const above = prefix === '' ? '' : '/kubelet\\.slice';
      const middle = qos === '' ? '' : `/${root}${qos}\\.slice`;
      const pod = `/${root}${qos}-pod(?:${POD_OF_SLICE})\\.slice`;
      return {
        pattern: new RegExp(
          `^${above}/${root}\\.slice${middle}${pod}/(?<runtime>cri-containerd|crio|docker)-${ID}\\.scope`,
        ),
      };
    }),
  ),
  // containerd that was told "slice:prefix:name" while it uses cgroupfs
  {
    pattern: new RegExp(
      `^/system\\.slice/containerd\\.service/kubepods(?:-burstable|-besteffort)?-pod(?:${POD_OF_SLICE})\\.slice:cri-containerd:${ID}`,
    ),
    runtime: 'containerd',
  },
];

const RUNTIMES: Readonly<Record<string, PathContainer['runtime']>> = {
  docker: 'docker',
  'cri-containerd': 'containerd',
  crio: 'cri-o',
  'crio-': 'cri-o',
};

/** Nested ones too, the outermost first. */
export function containersIn(path: string): PathContainer[] {
  const containers: PathContainer[] = [];
  for (let from = 0; from < path.length; ) {
    const found = match(path.slice(from));
    if (found === undefined) break;
    from += found.length;
    containers.push({ id: found.id, runtime: found.runtime, path: path.slice(0, from) });
  }
  return containers;
}

function match(path: string): { id: string; runtime: PathContainer['runtime']; length: number } | undefined {
  for (const { pattern, runtime } of FORMS) {
    const found = pattern.exec(path);
    if (found === null) continue;
    const { length } = found[0];
    if (length < path.length && path[length] !== '/') continue;
    const named = found.groups!.runtime;
    return { id: found.groups!.id!, runtime: named === undefined ? runtime : RUNTIMES[named], length };
  }
  return undefined;
}
