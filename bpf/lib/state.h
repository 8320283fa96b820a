/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What does a packet do to the state of its flow, and how long may the flow be idle in it? States and times are named and
 * chosen as Linux's connection tracking has them, so that what a user knows of the one holds for the other. */
#ifndef CS_STATE_H
#define CS_STATE_H

#include "clock.h"
#include "packet.h"

/* Powers of two: an index is masked, not checked. */
#define CS_STEPS 32
#define CS_STATES 32

#define CS_TCP_ROW(none, ss, sr, es, fw, cw, la, tw, cl)                                                               \
	{                                                                                                              \
		[CS_FLOW_NONE] = none, [CS_FLOW_SYN_SENT] = ss, [CS_FLOW_SYN_RECV] = sr, [CS_FLOW_ESTABLISHED] = es,   \
		[CS_FLOW_FIN_WAIT] = fw, [CS_FLOW_CLOSE_WAIT] = cw, [CS_FLOW_LAST_ACK] = la,                           \
		[CS_FLOW_TIME_WAIT] = tw, [CS_FLOW_CLOSE] = cl                                                         \
	}
#define CS_SCTP_ROW(none, cw, ce, es, ss, sr, sa, cl, hs)                                                              \
	{                                                                                                              \
		[CS_FLOW_NONE] = none, [CS_FLOW_SCTP_COOKIE_WAIT] = cw, [CS_FLOW_SCTP_COOKIE_ECHOED] = ce,             \
		[CS_FLOW_SCTP_ESTABLISHED] = es, [CS_FLOW_SCTP_SHUTDOWN_SENT] = ss,                                    \
		[CS_FLOW_SCTP_SHUTDOWN_RECD] = sr, [CS_FLOW_SCTP_SHUTDOWN_ACK_SENT] = sa,                              \
		[CS_FLOW_SCTP_CLOSED] = cl, [CS_FLOW_SCTP_HEARTBEAT_SENT] = hs                                         \
	}

/* Does not belong to a flow in this state; from nothing: does not begin one. */
#define __ CS_FLOW_NONE
#define SS CS_FLOW_SYN_SENT
#define SR CS_FLOW_SYN_RECV
#define ES CS_FLOW_ESTABLISHED
#define FW CS_FLOW_FIN_WAIT
#define CW CS_FLOW_CLOSE_WAIT
#define LA CS_FLOW_LAST_ACK
#define TW CS_FLOW_TIME_WAIT
#define CL CS_FLOW_CLOSE
#define sCW CS_FLOW_SCTP_COOKIE_WAIT
#define sCE CS_FLOW_SCTP_COOKIE_ECHOED
#define sES CS_FLOW_SCTP_ESTABLISHED
#define sSS CS_FLOW_SCTP_SHUTDOWN_SENT
#define sSR CS_FLOW_SCTP_SHUTDOWN_RECD
#define sSA CS_FLOW_SCTP_SHUTDOWN_ACK_SENT
#define sCL CS_FLOW_SCTP_CLOSED
#define sHS CS_FLOW_SCTP_HEARTBEAT_SENT

/* [a reply to what began the flow?][step][state] → the next state. Sequence numbers and tags are not followed: what names a
 * living flow, and comes from where its other end's packets come from, is for that flow's end to refuse. */
static const __u8 flow_steps[2][CS_STEPS][CS_STATES] = {
	{
		/* In a living flow a SYN is late, or its sender forgot the flow: the other side's answer tells which. */
		[CS_STEP_TCP_SYN] = CS_TCP_ROW(SS, SS, SR, ES, FW, CW, LA, __, __),
		/* After a simultaneous open (RFC 9293, section 3.5) both sides send one. */
		[CS_STEP_TCP_SYN_ACK] = CS_TCP_ROW(__, __, SR, ES, FW, CW, LA, TW, CL),
		/* From nothing: a flow that was lost, or older than we are. Picked up, if policy lets its sender open it. */
		[CS_STEP_TCP_ACK] = CS_TCP_ROW(ES, __, ES, ES, CW, CW, TW, TW, CL),
		[CS_STEP_TCP_FIN] = CS_TCP_ROW(FW, __, FW, FW, LA, LA, LA, TW, CL),
		[CS_STEP_TCP_RST] = CS_TCP_ROW(__, CL, CL, CL, CL, CL, CL, CL, CL),

		[CS_STEP_UDP] = { [CS_FLOW_NONE] = CS_FLOW_UDP_UNREPLIED,
				  [CS_FLOW_UDP_UNREPLIED] = CS_FLOW_UDP_UNREPLIED,
				  [CS_FLOW_UDP_REPLIED] = CS_FLOW_UDP_REPLIED },
		[CS_STEP_ECHO] = { [CS_FLOW_NONE] = CS_FLOW_ECHO, [CS_FLOW_ECHO] = CS_FLOW_ECHO },

		[CS_STEP_SCTP_INIT] = CS_SCTP_ROW(sCW, sCW, sCE, sES, sSS, sSR, sSA, __, sCW),
		/* Both sides may have begun (RFC 9260, section 5.2.1). */
		[CS_STEP_SCTP_INIT_ACK] = CS_SCTP_ROW(__, sCW, sCE, sES, __, __, __, __, __),
		[CS_STEP_SCTP_COOKIE_ECHO] = CS_SCTP_ROW(sCE, sCE, sCE, sES, __, __, sSA, __, __),
		[CS_STEP_SCTP_COOKIE_ACK] = CS_SCTP_ROW(__, __, sES, sES, __, __, __, __, __),
		[CS_STEP_SCTP_DATA] = CS_SCTP_ROW(sES, __, sCE, sES, sSS, sSR, sSA, __, sES),
		/* From nothing: another path of an association (section 5.4). */
		[CS_STEP_SCTP_HEARTBEAT] = CS_SCTP_ROW(sHS, __, sCE, sES, sSS, sSR, sSA, __, sHS),
		[CS_STEP_SCTP_HEARTBEAT_ACK] = CS_SCTP_ROW(__, __, sCE, sES, sSS, sSR, sSA, __, sHS),
		[CS_STEP_SCTP_SHUTDOWN] = CS_SCTP_ROW(__, __, __, sSS, sSS, sSR, sSA, __, __),
		[CS_STEP_SCTP_SHUTDOWN_ACK] = CS_SCTP_ROW(__, __, __, sES, sSA, sSA, sSA, sCL, __),
		[CS_STEP_SCTP_SHUTDOWN_COMPLETE] = CS_SCTP_ROW(__, __, __, __, __, __, sCL, sCL, __),
		[CS_STEP_SCTP_ABORT] = CS_SCTP_ROW(__, sCL, sCL, sCL, sCL, sCL, sCL, sCL, sCL),
		[CS_STEP_SCTP_OTHER] = CS_SCTP_ROW(__, __, sCE, sES, sSS, sSR, sSA, __, __),
	},
	{
		[CS_STEP_TCP_SYN_ACK] = CS_TCP_ROW(__, SR, SR, ES, FW, CW, LA, TW, CL),
		[CS_STEP_TCP_ACK] = CS_TCP_ROW(__, SS, SR, ES, CW, CW, TW, TW, CL),
		[CS_STEP_TCP_FIN] = CS_TCP_ROW(__, __, FW, FW, LA, LA, LA, TW, CL),
		[CS_STEP_TCP_RST] = CS_TCP_ROW(__, CL, CL, CL, CL, CL, CL, CL, CL),

		[CS_STEP_UDP] = { [CS_FLOW_UDP_UNREPLIED] = CS_FLOW_UDP_REPLIED,
				  [CS_FLOW_UDP_REPLIED] = CS_FLOW_UDP_REPLIED },
		[CS_STEP_ECHO_REPLY] = { [CS_FLOW_ECHO] = CS_FLOW_ECHO },

		[CS_STEP_SCTP_INIT_ACK] = CS_SCTP_ROW(__, sCW, sCE, sES, __, __, __, __, __),
		[CS_STEP_SCTP_COOKIE_ECHO] = CS_SCTP_ROW(__, sCE, sCE, sES, __, __, sSA, __, __),
		[CS_STEP_SCTP_COOKIE_ACK] = CS_SCTP_ROW(__, __, sES, sES, __, __, __, __, __),
		[CS_STEP_SCTP_DATA] = CS_SCTP_ROW(__, __, sCE, sES, sSS, sSR, sSA, __, sES),
		[CS_STEP_SCTP_HEARTBEAT] = CS_SCTP_ROW(__, __, sCE, sES, sSS, sSR, sSA, __, sHS),
		[CS_STEP_SCTP_HEARTBEAT_ACK] = CS_SCTP_ROW(__, __, sCE, sES, sSS, sSR, sSA, __, sES),
		[CS_STEP_SCTP_SHUTDOWN] = CS_SCTP_ROW(__, __, __, sSR, sSS, sSR, sSA, __, __),
		[CS_STEP_SCTP_SHUTDOWN_ACK] = CS_SCTP_ROW(__, __, __, sES, sSA, sSA, sSA, sCL, __),
		[CS_STEP_SCTP_SHUTDOWN_COMPLETE] = CS_SCTP_ROW(__, __, __, __, __, __, sCL, sCL, __),
		[CS_STEP_SCTP_ABORT] = CS_SCTP_ROW(__, sCL, sCL, sCL, sCL, sCL, sCL, sCL, sCL),
		[CS_STEP_SCTP_OTHER] = CS_SCTP_ROW(__, sCW, sCE, sES, sSS, sSR, sSA, __, __),
	},
};

#undef __
#undef SS
#undef SR
#undef ES
#undef FW
#undef CW
#undef LA
#undef TW
#undef CL
#undef sCW
#undef sCE
#undef sES
#undef sSS
#undef sSR
#undef sSA
#undef sCL
#undef sHS

/* ns. nf_conntrack's defaults. */
static const __u64 flow_idle_limits[CS_STATES] = {
	[CS_FLOW_SYN_SENT] = 120 * CS_SECOND,
	[CS_FLOW_SYN_RECV] = 60 * CS_SECOND,
	[CS_FLOW_ESTABLISHED] = 432000 * CS_SECOND,
	[CS_FLOW_FIN_WAIT] = 120 * CS_SECOND,
	[CS_FLOW_CLOSE_WAIT] = 60 * CS_SECOND,
	[CS_FLOW_LAST_ACK] = 30 * CS_SECOND,
	[CS_FLOW_TIME_WAIT] = 120 * CS_SECOND,
	[CS_FLOW_CLOSE] = 10 * CS_SECOND,
	[CS_FLOW_UDP_UNREPLIED] = 30 * CS_SECOND,
	[CS_FLOW_UDP_REPLIED] = 120 * CS_SECOND,
	[CS_FLOW_ECHO] = 30 * CS_SECOND,
	[CS_FLOW_SCTP_COOKIE_WAIT] = 3 * CS_SECOND,
	[CS_FLOW_SCTP_COOKIE_ECHOED] = 3 * CS_SECOND,
	[CS_FLOW_SCTP_ESTABLISHED] = 210 * CS_SECOND,
	[CS_FLOW_SCTP_SHUTDOWN_SENT] = 3 * CS_SECOND,
	[CS_FLOW_SCTP_SHUTDOWN_RECD] = 3 * CS_SECOND,
	[CS_FLOW_SCTP_SHUTDOWN_ACK_SENT] = 3 * CS_SECOND,
	[CS_FLOW_SCTP_CLOSED] = 10 * CS_SECOND,
	[CS_FLOW_SCTP_HEARTBEAT_SENT] = 30 * CS_SECOND,
};

static __always_inline __u8 flow_next(bool reply, __u8 step, __u8 state)
{
	return flow_steps[reply][step & (CS_STEPS - 1)][state & (CS_STATES - 1)];
}

static __always_inline __u64 flow_idle_limit(__u8 state)
{
	return flow_idle_limits[state & (CS_STATES - 1)];
}

/* No TCP segment with ACK alone and no UDP datagram takes a flow of theirs out of this state: as flow_steps has it, without the
 * memory it lies in. */
static __always_inline bool flow_rests(__u8 state, bool forth)
{
	return state == CS_FLOW_ESTABLISHED || state == CS_FLOW_UDP_REPLIED || (state == CS_FLOW_UDP_UNREPLIED && forth);
}

/* What opens finds such a flow over, and begins another. */
static __always_inline bool flow_is_over(__u8 state)
{
	return state == CS_FLOW_TIME_WAIT || state == CS_FLOW_CLOSE || state == CS_FLOW_SCTP_CLOSED;
}

#endif
