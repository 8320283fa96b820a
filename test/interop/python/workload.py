"""A workload that uses py-spiffe. Arguments: the uid to become, the Workload API's socket, a command. Prints JSON lines.

    x509            the X.509-SVID, now and after each push, until standard input ends
    jwt AUDIENCE    a JWT-SVID, judged by py-spiffe with the bundles that its source holds, and by the agent
"""

import json
import os
import sys
import threading

# All of it before the uid is given up: the modules may lie where only root reads.
import encodings.idna  # noqa: F401
from cryptography.hazmat.primitives import serialization  # noqa: F401
from spiffe import JwtSource, JwtSvid, WorkloadApiClient, X509Source


def say(value):
    print(json.dumps(value), flush=True)


def watch_x509(socket):
    changed = threading.Event()
    ended = threading.Event()

    def until_stdin_ends():
        sys.stdin.read()
        ended.set()
        changed.set()

    threading.Thread(target=until_stdin_ends, daemon=True).start()
    with X509Source(socket_path=socket, timeout_in_seconds=20) as source:
        source.subscribe_for_updates(changed.set)
        while not ended.is_set():
            changed.clear()
            svid = source.get_x509_context().default_svid
            bundle = source.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain)
            say(
                {
                    "id": str(svid.spiffe_id),
                    "serial": svid.leaf.serial_number.to_bytes(20, "big").lstrip(b"\0").hex(),
                    "chain": len(svid.cert_chain),
                    "authorities": len(bundle.x509_authorities),
                }
            )
            changed.wait()


def fetch_jwt(socket, audience):
    with JwtSource(socket_path=socket, timeout_in_seconds=20) as source:
        svid = source.fetch_svid(audience={audience})
        bundle = source.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain)
        judged = JwtSvid.parse_and_validate(svid.token, bundle, {audience})
        with WorkloadApiClient(socket) as client:
            by_agent = client.validate_jwt_svid(svid.token, audience)
        say({"id": str(judged.spiffe_id), "audience": sorted(judged.audience), "agent": str(by_agent.spiffe_id)})


def main():
    uid, socket, command, *rest = sys.argv[1:]
    os.setgroups([])
    os.setgid(int(uid))
    os.setuid(int(uid))
    {"x509": watch_x509, "jwt": fetch_jwt}[command](socket, *rest)


main()
