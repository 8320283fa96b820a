/** Why a peer channel could not be opened, as an exception at the rim of PeerChannels.open. */
import { CountersignError } from '../base/errors.ts';
import { type ReasonCode, reasonCodes } from '../base/registry/reason-codes.ts';

export class PeerChannelError extends CountersignError {
  readonly reason: ReasonCode;

  constructor(reason: ReasonCode, node: string) {
    super('unavailable', `peer channel to ${node}: ${reasonCodes[reason]} (${reason})`);
    this.name = 'PeerChannelError';
    this.reason = reason;
  }
}
