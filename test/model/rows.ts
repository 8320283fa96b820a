/** What is checked: each model with all rules, which must hold, and each model without one rule, which must not. */

export interface Row {
  readonly model: 'lease' | 'flight' | 'move' | 'renew' | 'channel' | 'liveness';
  readonly size: readonly string[];
  /** Rules that are taken away; none: the model itself. */
  readonly without: readonly string[];
  /** What must break (packet: P1 or P2, whichever is met first); undefined: must hold over the whole state space. */
  readonly breaks?: 'packet' | 'P0' | 'P3' | 'P4' | 'P5' | 'liveness';
  /** What is checked, or the packet that slips through, in a sentence. */
  readonly words: string;
}

const SMALL = ['NH=1', 'NR=1', 'NX=1', 'NE=2'];
const TWO_HOSTS = ['NH=2', 'NR=1', 'NX=1', 'NE=2'];

const holds = (model: Row['model'], size: readonly string[], words: string, without: readonly string[] = []): Row => ({
  model,
  size,
  without,
  words,
});
const breaks = (
  model: Row['model'],
  without: string | readonly string[],
  property: NonNullable<Row['breaks']>,
  words: string,
  size: readonly string[] = model === 'lease' ? SMALL : [],
): Row => ({ model, size, without: [without].flat(), breaks: property, words });

const reach = (model: Row['model'], size: readonly string[], words: string): Row => ({
  model,
  size: [...size, 'REACH'],
  without: [],
  breaks: 'P0',
  words,
});

/** Longest first, so that two cores end together. */
export const BASES: readonly Row[] = [
  holds('lease', ['NH=1', 'NR=2', 'NX=2', 'NE=3'], '1 host, 2 receivers, 2 IPs, 3 endpoints'),
  holds('lease', ['NH=2', 'NR=1', 'NX=2', 'NE=3'], '2 hosts, 1 receiver, 2 IPs, 3 endpoints'),
  holds(
    'lease',
    ['NH=1', 'NR=2', 'NX=1', 'NE=3', 'TWOCHANNELS', 'L=2'],
    'two channels at once, 2 receivers, 1 IP, 3 endpoints, lease of 2 ticks',
  ),
  holds('flight', ['NE=3', 'M=3'], 'packets in flight both ways, 3 owners of an IP'),
  holds('flight', ['NE=3', 'DELAYER'], 'the same, with somebody on the path who delays at will'),
  holds('flight', ['NR=2', 'M=1', 'NE=2'], 'the same, 2 receivers, 2 owners'),
  holds('move', ['NE=3'], 'an IP moves over three nodes, 3 endpoints'),
  holds('renew', ['NE=3'], 'one renewal for a channel, 3 endpoints'),
  holds('channel', ['NI=3'], '3 incarnations that run at once, 2 channels each'),
  holds('liveness', [], 'a channel stays, the successor opens, the pair is proved, the moved IP is taken'),
];

export const REMOVED: readonly Row[] = [
  // 1 Vouch
  breaks(
    'lease',
    'VouchOwnNode',
    'packet',
    'a central store still names the earlier owner; its successor sends and is taken for it',
  ),
  breaks('lease', 'VouchNonce', 'P3', 'an old reply serves when its request has long ended, and so has the owner'),
  breaks(
    'lease',
    'OtherNodesLeaseWins',
    'P4',
    'a second node claims the IP of a living endpoint and takes over its traffic',
    TWO_HOSTS,
  ),
  // 2 Lease
  breaks('lease', 'LeaseEveryPacket', 'P3', 'the owner ends, the withdraw is lost: it is believed for ever'),
  breaks(
    'lease',
    'LeaseFromAsking',
    'P3',
    'the reply is delayed by almost a lease, the owner ends meanwhile: believed for nearly two leases',
    [...SMALL, 'L=2'],
  ),
  breaks(
    'renew',
    'RenewalNamesApplied',
    'P3',
    'the receiver names the withdraw that it heard but has not applied: the renewal extends the dead entry too',
  ),
  breaks('renew', 'RenewalRefused', 'P3', 'the withdraw is still on its way, the renewal extends the dead entry'),
  breaks(
    'renew',
    'LeaseFromAsking',
    'P3',
    'a renewal that was delayed extends the lease of an endpoint that ended after it was granted',
  ),
  breaks(
    'renew',
    'RenewalAfterReset',
    'P3',
    'the restarted host knows of no withdraw, and renews what ended before its restart',
  ),
  // 3 Incarnation
  breaks(
    'lease',
    'ResetAssumesAll',
    'packet',
    'the restarted host has forgotten that the peer holds a lease, and opens the successor',
  ),
  breaks(
    'lease',
    'ResetDeletes',
    'packet',
    'the peer acks RESET and deletes later: the successor is taken for the dead owner',
  ),
  breaks(
    'lease',
    'ResetNamesLive',
    'packet',
    'only the agent restarted, the incarnation is the same: RESET deletes nothing, and its ack opens the fence',
  ),
  breaks(
    'lease',
    'RequestsDieWithChannel',
    'packet',
    'a reply from before the restart is applied after RESET was acked',
  ),
  breaks(
    'lease',
    'ResetAckClearsNamed',
    'packet',
    'the second channel brings the ack of a RESET that was said before the lease was given: the host takes it for an ack of its end',
    [...SMALL, 'TWOCHANNELS'],
  ),
  breaks(
    'channel',
    'BarLowerIncarnation',
    'P5',
    "a clone of the node's earlier life connects after its successor, and is believed",
  ),
  breaks(
    'channel',
    'BarRemembered',
    'P5',
    "the receiver's agent restarts, has forgotten the highest incarnation, and lets the clone in",
  ),
  breaks(
    'channel',
    'TunnelOfIncarnation',
    'packet',
    "the clone's packets come through the earlier life's tunnel key and are taken as the new endpoint's",
  ),
  breaks(
    'channel',
    'LowerChannelsClose',
    'P5',
    "the clone's channel, still open, vouches again after the new life's RESET was acked",
  ),
  // 4 Withdraw
  breaks(
    'lease',
    'AckAfterDelete',
    'packet',
    'the ack overtakes the deletion, the successor is taken for the dead owner',
  ),
  breaks('lease', 'AckByKey', 'packet', 'the restarted receiver does not know the pinned entry, acks, and leaves it'),
  breaks(
    'lease',
    ['TombstoneWithdrawn', 'WithdrawCancelsRequests'],
    'packet',
    'the reply that crossed the withdraw is applied after the ack',
  ),
  breaks(
    'flight',
    'AckAfterPrograms',
    'packet',
    'a program that began before the ack sends its packet, meant for the dead owner, to the successor',
  ),
  breaks(
    'flight',
    'FlushBeforeAck',
    'packet',
    "a packet for the dead owner waits in the receiver's hold queue until the successor is open",
  ),
  // 5 Fence
  breaks('lease', 'FenceSend', 'packet', 'the successor sends before the peer let go of the earlier owner'),
  breaks('lease', 'FenceReceive', 'packet', 'the successor receives what the peer still sends to the earlier owner'),
  breaks(
    'flight',
    'FenceVouch',
    'packet',
    "the successor is vouched for while the earlier owner's packets are under way: they are taken as its",
  ),
  breaks(
    'lease',
    'FenceNotByTime',
    'packet',
    'the receiver was paused, its lease runs on by its own clock when the fence opens by time',
  ),
  breaks(
    'liveness',
    'FencePerPeer',
    'liveness',
    'one fence for all: a dead peer keeps the successor shut to everybody',
  ),
  // 6 Drain
  breaks(
    'flight',
    'DrainFlush',
    'packet',
    "the dead owner's packet waits in its node's queue, and leaves when its successor is believed",
  ),
  breaks(
    'flight',
    'DrainTime',
    'packet',
    "the dead owner's packet is in the network when its successor is vouched for to a peer that never owed an ack",
  ),
  breaks(
    'flight',
    'DrainFromAck',
    'packet',
    "what the peer sent until its ack is in the network when the drain since the veth's close has long passed",
  ),
  breaks(
    'flight',
    'QueueBeforeSuccessor',
    'packet',
    "a paused receiver has the dead owner's packet in its queue when it applies the successor's vouch",
  ),
  breaks(
    'flight',
    'QueueBeforeOpen',
    'packet',
    "a packet for the dead owner lies in the host's own receive queue when the successor opens",
  ),
  breaks(
    'flight',
    'DropSessionBeforeSuccessor',
    'packet',
    "somebody on the path kept the dead owner's packet for later",
    ['DELAYER'],
  ),
  breaks(
    'flight',
    'DropSessionBeforeOpen',
    'packet',
    "somebody on the path kept the peer's packet for the dead owner",
    ['DELAYER'],
  ),
  // 7 Move
  breaks(
    'move',
    'MoveDeleteFirst',
    'packet',
    "the tunnel's entry has moved, the kernel still says the earlier node's endpoint",
  ),
  breaks(
    'move',
    'MoveFlush',
    'packet',
    "a packet for the earlier node's endpoint waits in the TUN, and the tunnel takes it to the new node",
  ),
  breaks(
    'move',
    'MoveTunnelBeforeVouch',
    'packet',
    "the kernel says the new endpoint, the tunnel still lets the earlier node's packets in",
  ),
  breaks(
    'move',
    'MoveWaitPrograms',
    'packet',
    'a packet of the earlier node, let in before the move, is looked up after it',
  ),
  breaks(
    'move',
    'MoveSerial',
    'packet',
    'the earlier node renews while the move is under way: its entry stands beside the new tunnel entry',
  ),
  // 8 Stamps
  breaks('lease', 'StampSource', 'packet', 'something sends from the IP after its endpoint ended'),
  breaks('lease', 'NoWorldInside', 'packet', 'nobody vouches for the source: it is taken as the world'),
  breaks(
    'move',
    'StampLocalDelivery',
    'packet',
    "an own endpoint got the IP: looked up by address, its neighbour's packet, or the earlier node's, is taken wrongly",
  ),
  // 9 Tunnel
  breaks(
    'move',
    'TunnelOrigin',
    'packet',
    "the earlier node goes on sending from the IP, and is taken for the new node's endpoint",
  ),
  breaks(
    'lease',
    'TunnelOrigin',
    'packet',
    "without an origin the earlier node's packets pass under the new node's vouch",
    TWO_HOSTS,
  ),
  // Liveness
  breaks('liveness', 'LeaseEnds', 'liveness', 'the earlier node is dead: nobody else is ever believed on the IP'),
  breaks(
    'liveness',
    'SameChoice',
    'liveness',
    "each side keeps the channel that it dialled and closes the other's, for ever",
  ),
  breaks(
    'liveness',
    'ProofAnswered',
    'liveness',
    'the responder has written, the initiator never hears: the held packet waits for ever',
  ),
  breaks('liveness', 'AskAgain', 'liveness', 'who asked while the fence was shut never asks again'),
];

/** One of several lines of defence: the model holds without it, because others stand behind. */
export const REDUNDANT: readonly Row[] = [
  holds('lease', [...SMALL, 'L=2'], 'WithdrawCancelsRequests stands behind', ['TombstoneWithdrawn']),
  holds('lease', [...SMALL, 'L=2'], 'TombstoneWithdrawn stands behind', ['WithdrawCancelsRequests']),
  holds('lease', [...SMALL, 'L=2'], 'both stand behind', ['NewerWins']),
  holds('move', ['NE=3'], 'a stale tunnel entry without a kernel entry lets nothing pass, given MoveSerial', [
    'AckAfterTunnel',
  ]),
];

/** Good things that each model can do: one that could do nothing would hold too. */
export const REACHED: readonly Row[] = [
  reach('lease', SMALL, 'a successor is taken as itself'),
  reach('flight', [], 'packets of and for a successor pass'),
  reach('flight', ['DELAYER'], 'packets of and for a successor pass'),
  reach('move', [], "packets of and for the new node's endpoint pass"),
  reach('renew', [], 'a lease is renewed after a withdraw'),
  reach('channel', [], 'a new incarnation is believed while an earlier one sends'),
];

/** What no rule stops: shown, so that nobody believes it is stopped. */
export const HAZARDS: readonly Row[] = [
  {
    model: 'lease',
    size: [...SMALL, 'HAZARD_Restore'],
    without: [],
    breaks: 'packet',
    words:
      "a node's memory is put back to an earlier moment of the same incarnation, and its dead endpoint sends before anybody notices",
  },
];
