/**
 * Our X.509 object identifiers, below the arc that Microsoft gives to whoever has a UUID (here 56d41ec5-f1b1-4516-9076-64b2b309c09b, cut into seven numbers):
 * it needs no registration, and every number is below 2^31. One that is not, as the whole UUID below 2.25 (ITU-T X.667), makes Go's crypto/x509 refuse
 * the certificate. Numbers are never used again.
 */
const ARC = '1.2.840.113556.1.8000.2554.22228.7877.61873.17686.36982.6599347.639131';

/** Non-critical extension of an X.509-SVID, UTF8String: the SPIFFE ID of the node the SVID is bound to. */
export const OID_NODE_BINDING = `${ARC}.1`;
/** Non-critical extension of a node SVID, UTF8String: the node's incarnation in decimal (rule 3 of leases and fences). */
export const OID_NODE_INCARNATION = `${ARC}.2`;
