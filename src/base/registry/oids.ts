/**
 * Our X.509 object identifiers, below 2.25.<UUID 56d41ec5-f1b1-4516-9076-64b2b309c09b> (ITU-T X.667: needs no registration). Numbers are never used again.
 */
const ARC = '2.25.115414998726548466883704353612710396059';

/** Non-critical extension of an X.509-SVID, UTF8String: the SPIFFE ID of the node the SVID is bound to. */
export const OID_NODE_BINDING = `${ARC}.1`;
/** Non-critical extension of a node SVID, UTF8String: the node's incarnation in decimal (rule 3 of leases and fences). */
export const OID_NODE_INCARNATION = `${ARC}.2`;
