/* The core: vouch, lease, incarnation (RESET), withdraw and ack, fence for each peer. Packets take no time here (flight.pml has them).
 *
 * Each option of each process is one atomic step of one rule. A rule is named in its comment; -DNO_<name> takes it away.
 * Network: a message that was sent arrives at any later moment, any number of times, or never. Clocks: each receiver's runs as
 * it likes (it may stand still for ever); a host's is not looked at at all. Crashes: agents (pinned maps live on) and nodes.
 * Endpoints are born in index order, so that the index is the order of (incarnation, generation). Their identity is the index too.
 *
 * P1  no receiver takes a packet of e as another's       P2  no endpoint gets a packet meant for another
 * P3  nobody is believed longer than a lease (receiver's clock) after its node stopped vouching
 * P4  a live lease of a living endpoint is not displaced by another node's claim
 */
#ifndef NH
#define NH 1            /* nodes 0..NH-1 host endpoints; the receivers are other nodes */
#endif
#ifndef NR
#define NR 2
#endif
#ifndef NX
#define NX 2            /* IPs */
#endif
#ifndef NE
#define NE 3            /* endpoints */
#endif
#ifndef L
#define L 1             /* a lease, in ticks of the receiver's clock */
#endif
#define ALL ((1<<NR)-1)
#define B(i) (1<<(i))
#define C(r,x) ((r)*NX+(x))
#define P(e,r) ((e)*NR+(r))
#define UNBORN 0
#define LIVES 1
#define DEAD 2

/* endpoints */
byte st[NE], home[NE], ip[NE];
byte opened[NE];        /* kernel, pinned: peers that the fence is open to                                   */
byte owes[NE];          /* host's agent: peers that may hold a lease on it, and have not acked that they let go */
byte old[NE];           /* of an incarnation before its node's present one                                    */
/* hosts' agents */
byte acked[NH];         /* peers that acked RESET in this life of the agent                                   */
byte reset[NH*NR];      /* RESET: 0 none, 1 on the wire, 2 applied and its ack on the wire                      */
byte keeps[NH*NR];      /* endpoints that it names: they go on                                                */
byte ended[NH*NR];      /* endpoints that had ended when it was sent: its ack speaks of these                 */
/* receivers' kernels, pinned */
byte kv[NR*NX];         /* who the IP is: endpoint + 1                                                        */
byte lt[NR*NX];         /* what is left of the lease                                                          */
/* receivers' agents */
byte rq[NR*NX];         /* open request: node asked + 1 */
byte rt[NR*NX];         /* what is left of a lease counted from its sending */
byte rep[NR*NX];        /* replies to it on the wire: endpoints they name */
/* what only the properties look at */
byte late[NE*NR];       /* ticks of the receiver's clock since the endpoint ended, while the receiver may believe in it */

#ifdef NO_AckByKey
byte knows[NR];         /* IPs whose entry the agent remembers */
#endif
#ifdef NO_AckAfterDelete
byte todo[NE];
#endif
#ifdef NO_ResetDeletes
byte undone[NE];
#endif
#ifdef NO_FenceNotByTime
byte waited[NE];
#endif
hidden byte i, j;

/* --- the rules as conditions ------------------------------------------------------------------------------------ */
#ifdef NO_LeaseEveryPacket
#define BELIEVED(r,x) (kv[C(r,x)]!=0)
#else
#define BELIEVED(r,x) (kv[C(r,x)]!=0 && lt[C(r,x)]>0)               /* LeaseEveryPacket */
#endif
#define BEFORE(p,e) (p<e && st[p]==DEAD && home[p]==home[e] && ip[p]==ip[e])
#define GONE(p,e,r) (!BEFORE(p,e) || (owes[p]&B(r))==0)
#if NE==2
#define LETGO(e,r) ((acked[home[e]]&B(r))!=0 && GONE(0,e,r))
#define HOLDER(h,x) (st[0]==LIVES && home[0]==h && ip[0]==x)
#elif NE==3
#define LETGO(e,r) ((acked[home[e]]&B(r))!=0 && GONE(0,e,r) && GONE(1,e,r))
#define HOLDER(h,x) ((st[0]==LIVES && home[0]==h && ip[0]==x) || (st[1]==LIVES && home[1]==h && ip[1]==x))
#else
#define LETGO(e,r) ((acked[home[e]]&B(r))!=0 && GONE(0,e,r) && GONE(1,e,r) && GONE(2,e,r))
#define HOLDER(h,x) ((st[0]==LIVES && home[0]==h && ip[0]==x) || (st[1]==LIVES && home[1]==h && ip[1]==x) || (st[2]==LIVES && home[2]==h && ip[2]==x))
#endif
#ifdef NO_StampSource
#define MAYSEND(e,r) (st[e]==DEAD || st[e]==LIVES && (opened[e]&B(r))!=0)
#elif defined(NO_FenceSend)
#define MAYSEND(e,r) (st[e]==LIVES)
#else
#define MAYSEND(e,r) (st[e]==LIVES && (opened[e]&B(r))!=0)          /* FenceSend, StampSource */
#endif
#ifdef NO_FenceReceive
#define MAYRECEIVE(e,r) (st[e]==LIVES)
#else
#define MAYRECEIVE(e,r) (st[e]==LIVES && (opened[e]&B(r))!=0)       /* FenceReceive */
#endif
#define MAYVOUCH(e,r) (st[e]==LIVES && (opened[e]&B(r))!=0)         /* FenceVouch: flight.pml shows why */
#ifdef NO_NewerWins
#define NEWER(e,r) true
#else
#define NEWER(e,r) (e+1>=kv[C(r,ip[e])])                            /* NewerWins */
#endif
#define OTHERNODES(e,r) (home[kv[C(r,ip[e])]-1]!=home[e])
#ifdef NO_OtherNodesLeaseWins
#define FITS(e,r) (kv[C(r,ip[e])]==0 || lt[C(r,ip[e])]==0 || OTHERNODES(e,r) || NEWER(e,r))
#else
#define FITS(e,r) (kv[C(r,ip[e])]==0 || lt[C(r,ip[e])]==0 || (!OTHERNODES(e,r) && NEWER(e,r)))   /* OtherNodesLeaseWins */
#endif
#ifdef NO_TunnelOrigin
#define ORIGIN(e,f) true
#else
#define ORIGIN(e,f) (home[e]==home[f])                              /* TunnelOrigin */
#endif
#define TAKENAS(e,r) (kv[C(r,ip[e])]-1)
#define WRONG(e,r) (BELIEVED(r,ip[e]) && TAKENAS(e,r)!=e)

/* --- forget what no longer matters: fewer states, the same behaviour --------------------------------------------- */
inline settle() {
  for (i : 0 .. NE-1) {
    if :: st[i]==DEAD -> opened[i]=0; 
          for (j : 0 .. NR-1) {
            if :: kv[C(j,ip[i])]!=i+1 && (rep[C(j,ip[i])]&B(i))==0 -> late[P(i,j)]=0 :: else fi }
       :: else fi };
  skip
}
inline forget(r,x) { rq[C(r,x)]=0; rt[C(r,x)]=0; rep[C(r,x)]=0 }
inline delete(e,r) {    /* by key in the kernel's map */
  if :: kv[C(r,ip[e])]==e+1 -> kv[C(r,ip[e])]=0; lt[C(r,ip[e])]=0; printf("EV delete node=%d ip=%d\n", NH+r, ip[e]) :: else fi
}

/* --- an endpoint's life ------------------------------------------------------------------------------------------ */
inline born(e,h,x) {
  st[e]=LIVES; home[e]=h; ip[e]=x; printf("EV born node=%d ip=%d endpoint=%d identity=%d generation=%d\n", h, x, e, e, e)
}
#define MAYBORN(e,h,x) (st[e]==UNBORN && (e==0 || st[(e>0->e-1:0)]!=UNBORN) && !HOLDER(h,x) && (e>0 || (h==0 && x==0)))
proctype Endpoint(byte e) {
  do
  :: d_step { MAYBORN(e,0,0) -> born(e,0,0) }
#if NX>1
  :: d_step { MAYBORN(e,0,1) -> born(e,0,1) }
#endif
#if NH>1
  :: d_step { MAYBORN(e,1,0) -> born(e,1,0) }
#if NX>1
  :: d_step { MAYBORN(e,1,1) -> born(e,1,1) }
#endif
#endif
  :: d_step { st[e]==LIVES -> st[e]=DEAD; printf("EV close node=%d ip=%d generation=%d\n", home[e], ip[e], e); settle() }
#ifdef NO_FenceNotByTime
  :: d_step { st[e]==LIVES && waited[e]<L+2 -> waited[e]++ }
#endif
  od
}

/* --- an endpoint and a peer -------------------------------------------------------------------------------------- */
proctype Pair(byte e, r) {
  do
  :: d_step { st[e]==LIVES && (opened[e]&B(r))==0 && LETGO(e,r) ->                                /* Fence */
       opened[e]=opened[e]|B(r); printf("EV open node=%d ip=%d generation=%d peer=%d\n", home[e], ip[e], e, NH+r) }
#ifdef NO_FenceNotByTime
  :: d_step { st[e]==LIVES && (opened[e]&B(r))==0 && waited[e]==L+2 -> opened[e]=opened[e]|B(r);
       printf("EV open node=%d ip=%d generation=%d peer=%d\n", home[e], ip[e], e, NH+r) }
#endif
#ifdef NO_VouchOwnNode
  /* a central store is believed, and it is behind */
  :: d_step { st[e]!=UNBORN && FITS(e,r) -> kv[C(r,ip[e])]=e+1; lt[C(r,ip[e])]=L;
       printf("EV apply node=%d peer=%d ip=%d identity=%d generation=%d lease=%d\n", NH+r, home[e], ip[e], e, e, L) }
#endif
  :: d_step { MAYVOUCH(e,r) && rq[C(r,ip[e])]==home[e]+1 && (rep[C(r,ip[e])]&B(e))==0 ->          /* Vouch */
       rep[C(r,ip[e])]=rep[C(r,ip[e])]|B(e); owes[e]=owes[e]|B(r);
       printf("EV grant node=%d peer=%d ip=%d identity=%d generation=%d\n", home[e], NH+r, ip[e], e, e) }
#ifdef NO_VouchNonce
  :: d_step { (rep[C(r,ip[e])]&B(e))!=0 && FITS(e,r) -> lt[C(r,ip[e])]=L; kv[C(r,ip[e])]=e+1;
       printf("EV apply node=%d peer=%d ip=%d identity=%d generation=%d lease=%d\n", NH+r, home[e], ip[e], e, e, L) }
#else
  :: d_step { (rep[C(r,ip[e])]&B(e))!=0 && rt[C(r,ip[e])]>0 && FITS(e,r) ->                       /* VouchNonce */
       if :: kv[C(r,ip[e])]!=0 && lt[C(r,ip[e])]>0 && OTHERNODES(e,r) && st[TAKENAS(e,r)]==LIVES ->
               printf("P4: endpoint %d displaces %d, which lives\n", e, TAKENAS(e,r)); assert(false) :: else fi;
       kv[C(r,ip[e])]=e+1;
#ifdef NO_LeaseFromAsking
       lt[C(r,ip[e])]=L;
#else
       lt[C(r,ip[e])]=rt[C(r,ip[e])];                                                             /* LeaseFromAsking */
#endif
#ifdef NO_AckByKey
       knows[r]=knows[r]|B(ip[e]);
#endif
       printf("EV apply node=%d peer=%d ip=%d identity=%d generation=%d lease=%d\n", NH+r, home[e], ip[e], e, e, lt[C(r,ip[e])]);
       forget(r,ip[e]); settle() }
#endif
  /* Withdraw: said, applied and acked; the ack's arrival may be as late as it likes, the fence opens later still. */
#ifdef NO_AckAfterDelete
  :: d_step { st[e]==DEAD && (owes[e]&B(r))!=0 && (acked[home[e]]&B(r))!=0 ->
       printf("EV withdraw node=%d peer=%d id=%d ip=%d generation=%d\n", home[e], NH+r, e*NR+r, ip[e], e);
       printf("EV withdraw-ack node=%d peer=%d id=%d\n", NH+r, home[e], e*NR+r);
       printf("EV withdraw-acked node=%d peer=%d id=%d\n", home[e], NH+r, e*NR+r);
       owes[e]=owes[e]&~B(r); todo[e]=todo[e]|B(r); settle() }
  :: d_step { (todo[e]&B(r))!=0 -> todo[e]=todo[e]&~B(r); delete(e,r); forget(r,ip[e]); settle() }
#else
  :: d_step { st[e]==DEAD && (owes[e]&B(r))!=0 && (acked[home[e]]&B(r))!=0 ->
       printf("EV withdraw node=%d peer=%d id=%d ip=%d generation=%d\n", home[e], NH+r, e*NR+r, ip[e], e);
#ifdef NO_AckByKey
       if :: (knows[r]&B(ip[e]))!=0 -> delete(e,r) :: else fi;
#else
       delete(e,r);                                                                               /* AckByKey */
#endif
#ifndef NO_TombstoneWithdrawn
       rep[C(r,ip[e])]=rep[C(r,ip[e])]&~B(e);                                                     /* TombstoneWithdrawn */
#endif
#ifndef NO_WithdrawCancelsRequests
       if :: rq[C(r,ip[e])]==home[e]+1 -> forget(r,ip[e]) :: else fi;                             /* WithdrawCancelsRequests */
#endif
       printf("EV withdraw-ack node=%d peer=%d id=%d\n", NH+r, home[e], e*NR+r);
       printf("EV withdraw-acked node=%d peer=%d id=%d\n", home[e], NH+r, e*NR+r);
       owes[e]=owes[e]&~B(r); settle() }
#endif
#ifdef NO_ResetDeletes
  :: d_step { (undone[e]&B(r))!=0 -> undone[e]=undone[e]&~B(r); delete(e,r); settle() }
#endif
#ifdef REACH
  :: d_step { MAYSEND(e,r) && BELIEVED(r,ip[e]) && TAKENAS(e,r)==e && e>0 && BEFORE(0,e) ->
       printf("P0: endpoint %d is taken as itself where 0 was before\n", e); assert(false) }
#endif
  /* The properties, where a packet would pass. */
  :: d_step { MAYSEND(e,r) && WRONG(e,r) && ORIGIN(e,TAKENAS(e,r)) ->
       printf("EV send node=%d peer=%d ip=%d generation=%d packet=1\n", home[e], NH+r, ip[e], e);
       printf("EV take node=%d peer=%d ip=%d identity=%d packet=1\n", NH+r, home[e], ip[e], TAKENAS(e,r));
       printf("P1: a packet of endpoint %d is taken as %d's by receiver %d\n", e, TAKENAS(e,r), r); assert(false) }
#ifdef NO_NoWorldInside
  :: d_step { MAYSEND(e,r) && !BELIEVED(r,ip[e]) ->
       printf("EV take node=%d peer=%d ip=%d identity=2\n", NH+r, home[e], ip[e]);
       printf("P1: a packet of endpoint %d is taken as the world's by receiver %d\n", e, r); assert(false) }
#endif
  :: d_step { MAYRECEIVE(e,r) && WRONG(e,r) && home[TAKENAS(e,r)]==home[e] ->
       printf("P2: endpoint %d gets receiver %d's packet for %d\n", e, r, TAKENAS(e,r)); assert(false) }
  :: d_step { st[e]==DEAD && BELIEVED(r,ip[e]) && TAKENAS(e,r)==e && late[P(e,r)]>=L ->
       printf("P3: receiver %d believes in endpoint %d longer than a lease after its end\n", r, e); assert(false) }
  od
}

/* --- a receiver's agent and kernel ------------------------------------------------------------------------------- */
inline ask(r,x,h) {
  rq[C(r,x)]=h+1; rt[C(r,x)]=L; rep[C(r,x)]=0;
  printf("EV ask node=%d peer=%d ip=%d\n", NH+r, h, x); settle()
}
#define MAYASK(r,x,h) (!(rq[C(r,x)]==h+1 && rt[C(r,x)]==L && rep[C(r,x)]==0))
proctype Receiver(byte r) {
  do
  :: d_step { MAYASK(r,0,0) -> ask(r,0,0) }
#if NX>1
  :: d_step { MAYASK(r,1,0) -> ask(r,1,0) }
#endif
#if NH>1
  :: d_step { MAYASK(r,0,1) -> ask(r,0,1) }
#if NX>1
  :: d_step { MAYASK(r,1,1) -> ask(r,1,1) }
#endif
#endif
  :: d_step { true -> /* its clock goes on by one tick */
       for (j : 0 .. NX-1) {
         lt[C(r,j)]=(lt[C(r,j)]>0 -> lt[C(r,j)]-1 : 0);
         rt[C(r,j)]=(rt[C(r,j)]>0 -> rt[C(r,j)]-1 : 0);
#ifndef NO_VouchNonce
         if :: rt[C(r,j)]==0 -> rq[C(r,j)]=0; rep[C(r,j)]=0 :: else fi;
#endif
#ifndef NO_LeaseEveryPacket
         if :: lt[C(r,j)]==0 && kv[C(r,j)]!=0 -> kv[C(r,j)]=0; printf("EV delete node=%d ip=%d\n", NH+r, j) :: else fi
#endif
       };
       for (j : 0 .. NE-1) { if :: st[j]==DEAD && late[P(j,r)]<L -> late[P(j,r)]++ :: else fi };
       printf("EV tick node=%d\n", NH+r); settle() }
  :: d_step { true -> /* its agent is gone and comes back: requests are forgotten, pinned maps are not */
       printf("EV agent-stop node=%d\n", NH+r); printf("EV agent-start node=%d \n", NH+r);
       for (j : 0 .. NX-1) { forget(r,j) };
#ifdef NO_AckByKey
       knows[r]=0;
#endif
       settle() }
  od
}

/* --- a host's agent and node ------------------------------------------------------------------------------------- */
inline sayreset(h,r) {
  reset[h*NR+r]=1; keeps[h*NR+r]=0; ended[h*NR+r]=0;
  for (i : 0 .. NE-1) {
    if :: st[i]==LIVES && home[i]==h -> keeps[h*NR+r]=keeps[h*NR+r]|B(i)
       :: st[i]==DEAD && home[i]==h -> ended[h*NR+r]=ended[h*NR+r]|B(i)
       :: else fi };
  printf("EV reset node=%d peer=%d keeps=%d\n", h, NH+r, keeps[h*NR+r])
}
inline takereset(h,r) {
  for (i : 0 .. NE-1) {
    if :: st[i]!=UNBORN && home[i]==h && (keeps[h*NR+r]&B(i))==0 ->
#ifdef NO_ResetDeletes
          undone[i]=undone[i]|B(r);
#else
#ifdef NO_ResetNamesLive
          if :: old[i] -> delete(i,r) :: else fi;
#else
          delete(i,r);                                                                            /* ResetDeletes, ResetNamesLive */
#endif
#endif
#ifndef NO_RequestsDieWithChannel
          if :: (ended[h*NR+r]&B(i))!=0 -> rep[C(r,ip[i])]=rep[C(r,ip[i])]&~B(i) :: else fi       /* RequestsDieWithChannel */
#else
          skip
#endif
       :: else fi };
  printf("EV reset-ack node=%d peer=%d\n", NH+r, h);
  reset[h*NR+r]=2; settle()
}
inline takeresetack(h,r) {
  for (i : 0 .. NE-1) {
#ifdef NO_ResetAckClearsNamed
    if :: st[i]==DEAD && home[i]==h -> owes[i]=owes[i]&~B(r) :: else fi };
#else
    if :: (ended[h*NR+r]&B(i))!=0 -> owes[i]=owes[i]&~B(r) :: else fi };                          /* ResetAckClearsNamed */
#endif
  printf("EV reset-acked node=%d peer=%d\n", h, NH+r);
  acked[h]=acked[h]|B(r); reset[h*NR+r]=0; keeps[h*NR+r]=0; ended[h*NR+r]=0; settle()
}
inline restart(h) {     /* of its agent: it has forgotten whom it gave leases */
#ifndef NO_ResetAssumesAll
  acked[h]=0;                                                                                     /* ResetAssumesAll */
  for (i : 0 .. NE-1) { if :: st[i]==LIVES && home[i]==h -> owes[i]=ALL :: else -> if :: home[i]==h -> owes[i]=0 :: else fi fi };
#else
  for (i : 0 .. NE-1) { if :: st[i]!=UNBORN && home[i]==h -> owes[i]=0 :: else fi };
#endif
  for (i : 0 .. NR-1) { reset[h*NR+i]=0; keeps[h*NR+i]=0; ended[h*NR+i]=0 };
  settle()
}
/* On each channel that opens. Two at once: both sides dialled; the second's RESET comes while the first is in use. */
#ifdef TWOCHANNELS
#define MAYRESET(h,r) (reset[h*NR+r]==0)
#else
#define MAYRESET(h,r) (reset[h*NR+r]==0 && (acked[h]&B(r))==0)
#endif
proctype Host(byte h) {
  do
  :: d_step { MAYRESET(h,0) -> sayreset(h,0) }
  :: d_step { reset[h*NR]==1 -> takereset(h,0) }
  :: d_step { reset[h*NR]==2 -> takeresetack(h,0) }
#if NR>1
  :: d_step { MAYRESET(h,1) -> sayreset(h,1) }
  :: d_step { reset[h*NR+1]==1 -> takereset(h,1) }
  :: d_step { reset[h*NR+1]==2 -> takeresetack(h,1) }
#endif
  :: d_step { st[0]!=UNBORN -> /* the agent is gone and comes back: it has forgotten whom it gave leases; kernel state lives on */
       printf("EV agent-stop node=%d\n", h); printf("EV agent-start node=%d \n", h);
       restart(h) }
#ifdef HAZARD_Restore
  /* The node's memory is put back to when endpoint 0 lived, under the same incarnation: rules cannot help before it is noticed. */
  :: d_step { home[0]==h && st[0]==DEAD && st[1]==LIVES && home[1]==h && ip[1]==ip[0] && !old[0] -> st[0]=LIVES; opened[0]=ALL; st[1]=DEAD }
#endif
  :: d_step { st[0]!=UNBORN -> /* the node is gone and comes back with a new incarnation */
       printf("EV node-crash node=%d\n", h); printf("EV node-start node=%d\n", h);
       for (i : 0 .. NE-1) { if :: st[i]!=UNBORN && home[i]==h -> old[i]=1; if :: st[i]==LIVES -> st[i]=DEAD :: else fi :: else fi };
       restart(h) }
  od
}

init {
  atomic {
    for (i : 0 .. NH-1) { acked[i]=ALL };   /* nobody has lived before: nobody believes anything */
    run Endpoint(0); run Endpoint(1);
#if NE>2
    run Endpoint(2);
#endif
    run Pair(0,0); run Pair(1,0);
#if NE>2
    run Pair(2,0);
#endif
    run Receiver(0);
#if NR>1
    run Pair(0,1); run Pair(1,1); 
#if NE>2
    run Pair(2,1);
#endif
    run Receiver(1);
#endif
    run Host(0);
#if NH>1
    run Host(1)
#endif
  }
}
