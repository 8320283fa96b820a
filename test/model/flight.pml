/* Packets take time: one host (its IP has one owner after the other), receivers that send to it and take from it. Both directions
 * have every place where a packet may lie: a program that runs, the sender's queues, the network, the other side's queue.
 *
 * out: endpoint e → peer r.   e's packet: outq (hold, TUN, tunnel, fragments) → outnet → inq (r's receive queue) → r's programs
 * in:  peer r → the IP, judged by r's programs as meant for e:  judged (the program still runs) → backq (r's hold, TUN,
 *      tunnel) → backnet → hostq (the host's receive queue) → the host's programs deliver it to whoever owns the IP
 *
 * lease.pml has what happens to messages; here a vouch is asked for, granted and applied in one step, and a lease may end at any time.
 * The network holds a packet for M ticks at most; with -DDELAYER somebody on the path holds it as long as he likes.
 * A receiver's queue holds it as long as it likes: its machine may be paused. -DNO_<rule> takes a rule away.
 */
#ifndef NR
#define NR 1
#endif
#ifndef NE
#define NE 2
#endif
#ifdef DELAYER
#define M 1
#else
#ifndef M
#define M 2
#endif
#endif
#ifndef D
#define D M             /* drain: not shorter than a packet's life (clock slips are in the setting's margin) */
#endif
#define ALL ((1<<NR)-1)
#define B(i) (1<<(i))
#define P(e,r) ((e)*NR+(r))
#define UNBORN 0
#define LIVES 1
#define DEAD 2

byte st[NE], opened[NE], owes[NE];      /* as in lease.pml */
byte acked;                             /* peers that acked RESET */
byte sinceclose;                        /* drain left since the last close; a restarted agent does not know */
byte sinceack[NR];                      /* drain left since the peer's last ack */
byte kv[NR];                            /* receiver: who the IP is: endpoint + 1 */
byte outq[NE], inq[NE], hostq[NE], backq[NE], judged[NE];       /* peers whose packet lies there */
byte outnet[NE*NR], backnet[NE*NR];     /* ticks that it may still live in the network */
hidden byte i, j;

#define BEFORE(p,e) (p<e && st[p]==DEAD)
#define GONE(p,e,r) (!BEFORE(p,e) || (owes[p]&B(r))==0)
#if NE==2
#define LETGO(e,r) ((acked&B(r))!=0 && GONE(0,e,r))
#define FREE (st[0]!=LIVES && st[1]!=LIVES)
#else
#define LETGO(e,r) ((acked&B(r))!=0 && GONE(0,e,r) && GONE(1,e,r))
#define FREE (st[0]!=LIVES && st[1]!=LIVES && st[2]!=LIVES)
#endif
#if defined(NO_DrainTime) || defined(DELAYER)
#define DRAINED true
#else
#define DRAINED (sinceclose==0)                                     /* DrainTime */
#endif
#ifdef DELAYER
#define QUIET(r) true
#else
#define QUIET(r) (sinceack[r]==0)
#endif
#define MAYSEND(e,r) (st[e]==LIVES && (opened[e]&B(r))!=0)
#ifdef NO_FenceVouch
#define MAYVOUCH(e,r) (st[e]==LIVES && LETGO(e,r))
#else
#define MAYVOUCH(e,r) (st[e]==LIVES && (opened[e]&B(r))!=0)         /* FenceVouch */
#endif


/* The receiver lets go of what it believes, and acks. */
inline letgo(r) {
  kv[r]=0;
#ifndef NO_AckAfterPrograms
  for (j : 0 .. NE-1) { judged[j]=judged[j]&~B(r) };                /* AckAfterPrograms: they have ended ... */
#endif
#ifndef NO_FlushBeforeAck
  for (j : 0 .. NE-1) { backq[j]=backq[j]&~B(r) };                  /* FlushBeforeAck: ... and what they queued for the IP is gone */
#endif
#ifndef NO_DrainFromAck
  sinceack[r]=D                                                     /* DrainFromAck */
#else
  skip
#endif
}

proctype Endpoint(byte e) {
  do
  :: d_step { st[e]==UNBORN && FREE && (e==0 || st[(e>0->e-1:0)]==DEAD) -> st[e]=LIVES; printf("EV born %d\n", e) }
  :: d_step { st[e]==LIVES -> st[e]=DEAD; opened[e]=0; sinceclose=D; printf("EV close %d\n", e);
#ifndef NO_DrainFlush
       outq[e]=0                                                    /* DrainFlush */
#endif
     }
  od
}

proctype Pair(byte e, r) {
  do
  :: d_step { st[e]==LIVES && (opened[e]&B(r))==0 && LETGO(e,r) && DRAINED && QUIET(r) ->      /* Fence, Drain */
#if defined(DELAYER) && !defined(NO_DropSessionBeforeOpen)
       for (j : 0 .. NE-1) { backnet[P(j,r)]=0 };                   /* DropSessionBeforeOpen: the host cannot read older packets any more */
#endif
#ifndef NO_QueueBeforeOpen
       for (j : 0 .. NE-1) { hostq[j]=hostq[j]&~B(r) };             /* QueueBeforeOpen: what came for the earlier owner is gone */
#endif
       opened[e]=opened[e]|B(r); printf("EV open %d to %d\n", e, r) }
  :: d_step { MAYVOUCH(e,r) && kv[r]!=e+1 && kv[r]<=e+1 -> /* Vouch, applied */
#if defined(DELAYER) && !defined(NO_DropSessionBeforeSuccessor)
       for (j : 0 .. NE-1) { outnet[P(j,r)]=0 };                    /* DropSessionBeforeSuccessor: nor the receiver */
#endif
#ifndef NO_QueueBeforeSuccessor
       for (j : 0 .. NE-1) { inq[j]=inq[j]&~B(r) };                 /* QueueBeforeSuccessor: what was received before is judged before */
#endif
       kv[r]=e+1; owes[e]=owes[e]|B(r); printf("EV apply %d at %d\n", e, r) }
  :: d_step { kv[r]==e+1 -> kv[r]=0; printf("EV lease of %d ends at %d\n", e, r) }
  :: d_step { st[e]==DEAD && (owes[e]&B(r))!=0 && (acked&B(r))!=0 -> letgo(r); owes[e]=owes[e]&~B(r); printf("EV withdraw of %d acked by %d\n", e, r) }   /* Withdraw */
  /* out */
  :: d_step { MAYSEND(e,r) && (outq[e]&B(r))==0 -> outq[e]=outq[e]|B(r); printf("EV %d sends to %d\n", e, r) }
  :: d_step { (outq[e]&B(r))!=0 -> outq[e]=outq[e]&~B(r); outnet[P(e,r)]=M; printf("EV packet of %d to %d in the network\n", e, r) }
  :: d_step { outnet[P(e,r)]>0 && (inq[e]&B(r))==0 -> inq[e]=inq[e]|B(r); printf("EV packet of %d in the queue of %d\n", e, r) }           /* and the network may keep a copy */
#ifdef REACH
  :: d_step { (inq[e]&B(r))!=0 && kv[r]==e+1 && BEFORE(0,e) && (hostq[e]&B(r))!=0 && MAYSEND(e,r) ->
       printf("P0: packets of and for endpoint %d pass where 0 was before\n", e); assert(false) }
#endif
  :: d_step { (inq[e]&B(r))!=0 -> inq[e]=inq[e]&~B(r);
       if :: kv[r]!=0 && kv[r]!=e+1 ->
            printf("P1: a packet of endpoint %d is taken as %d's by receiver %d\n", e, kv[r]-1, r); assert(false)
          :: else fi }
  /* in */
  :: d_step { kv[r]==e+1 && (judged[e]&B(r))==0 -> judged[e]=judged[e]|B(r); printf("EV packet of peer %d judged as meant for %d\n", r, e) }
  :: d_step { (judged[e]&B(r))!=0 -> judged[e]=judged[e]&~B(r); backq[e]=backq[e]|B(r); printf("EV it is queued, peer %d, for %d\n", r, e) }
  :: d_step { (backq[e]&B(r))!=0 -> backq[e]=backq[e]&~B(r); backnet[P(e,r)]=M; printf("EV packet of peer %d for %d in the network\n", r, e) }
  :: d_step { backnet[P(e,r)]>0 && (hostq[e]&B(r))==0 -> hostq[e]=hostq[e]|B(r); printf("EV packet of peer %d for %d in the queue of the host\n", r, e) }
  od
}
/* The host's programs deliver to the owner of the IP: f gets what was meant for e. */
proctype Deliver(byte e, f, r) {
  do
  :: d_step { (hostq[e]&B(r))!=0 -> hostq[e]=hostq[e]&~B(r);
       if :: e!=f && st[f]==LIVES && (opened[f]&B(r))!=0 ->
            printf("P2: endpoint %d gets receiver %d's packet for %d\n", f, r, e); assert(false)
          :: else fi }
  od
}

inline restart() {
  acked=0; sinceclose=0;
  for (i : 0 .. NE-1) { if :: st[i]==LIVES -> owes[i]=ALL :: else -> owes[i]=0 fi };
  for (i : 0 .. NR-1) { sinceack[i]=0 };
  skip
}
proctype Host() {
  do
  :: d_step { st[0]!=UNBORN -> restart(); printf("EV agent restarts\n");  /* the agent; the kernel's state lives on */
     }
  :: d_step { st[0]!=UNBORN ->                                      /* the node */
       for (i : 0 .. NE-1) { outq[i]=0; hostq[i]=0; if :: st[i]==LIVES -> st[i]=DEAD; opened[i]=0 :: else fi };
       restart(); printf("EV node restarts\n");
     }
  od
}
proctype Reset(byte r) {
  do
  :: d_step { (acked&B(r))==0 ->                                    /* RESET: what does not live goes */
       if :: kv[r]!=0 && st[(kv[r]>0->kv[r]-1:0)]==LIVES -> skip :: else -> letgo(r) fi;
       for (i : 0 .. NE-1) { if :: st[i]==DEAD -> owes[i]=owes[i]&~B(r) :: else fi };
       acked=acked|B(r); printf("EV RESET acked by %d\n", r) }
  od
}
proctype Time() {
  do
  :: d_step { true ->
       sinceclose=(sinceclose>0->sinceclose-1:0);
       for (i : 0 .. NR-1) { sinceack[i]=(sinceack[i]>0->sinceack[i]-1:0) };
#ifndef DELAYER
       for (i : 0 .. NE*NR-1) { outnet[i]=(outnet[i]>0->outnet[i]-1:0); backnet[i]=(backnet[i]>0->backnet[i]-1:0) };
#endif
       printf("EV time\n") }
  od
}

init {
  atomic {
    acked=ALL;
    run Endpoint(0); run Endpoint(1); run Pair(0,0); run Pair(1,0); run Deliver(0,1,0); run Deliver(1,0,0);
#if NR>1
    run Pair(0,1); run Pair(1,1); run Deliver(0,1,1); run Deliver(1,0,1);
#endif
#if NE>2
    run Endpoint(2); run Pair(2,0); run Deliver(0,2,0); run Deliver(1,2,0); run Deliver(2,0,0); run Deliver(2,1,0);
#if NR>1
    run Pair(2,1); run Deliver(0,2,1); run Deliver(1,2,1);
#endif
#endif
    run Host(); run Reset(0);
#if NR>1
    run Reset(1);
#endif
    run Time()
  }
}
