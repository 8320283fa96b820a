/* One IP moves between nodes: A (0), B (1) and the receiver's own node (2). The receiver has two tables that are written one
 * after the other: the tunnel's (which node may send from the IP, and where packets to it go) and the kernel's (who the IP is).
 *
 * A packet of e comes in by the tunnel of e's node; the tunnel looks at its table when it decrypts; the packet lies in a
 * receive queue; the programs look at the kernel's table later. Out of the receiver: programs judge who the IP is; the packet lies
 * in a queue (hold, TUN); the tunnel looks up the node later still. Two nodes may have a living endpoint on the IP at once (the server
 * gave it to another node, the first has not heard). Owners one after another on ONE node are flight.pml's: here the later is opened
 * only when nothing of the earlier is on its way and the receiver has let go. A lease may end at any time. -DNO_<rule> takes a rule away.
 */
#ifndef NE
#define NE 3
#endif
#define B(i) (1<<(i))
#define SELF 2
#define UNBORN 0
#define LIVES 1
#define DEAD 2

byte st[NE], home[NE], opened[NE], owes[NE];
byte flying[NE];        /* its packet is between its veth and the receiver's tunnel */
byte inq[NE];           /* its packet is decrypted and lies in the receiver's queue */
byte judged[NE];        /* a program of the receiver runs, and has taken the IP for e */
byte outq[NE];          /* a packet that was judged as meant for e lies in the receiver's queues */
byte kv;                /* kernel: who the IP is: endpoint + 1 */
byte tunnel;            /* tunnel: whose the IP is: node + 1 */
byte change, phase;     /* the receiver's agent is at work: for endpoint + 1, this far */
hidden byte i;

#define BEFORE(p,e) (p<e && st[p]==DEAD && home[p]==home[e])
#define CLEAN(p,e) (!BEFORE(p,e) || (owes[p]==0 && flying[p]==0 && judged[p]==0 && outq[p]==0))
#define FREEON(p,h) (st[p]!=LIVES || home[p]!=h)
#if NE==2
#define OPENS(e) CLEAN(0,e)
#define FREE(h) (FREEON(0,h) && FREEON(1,h))
#define OWN(e) (st[0]==LIVES && home[0]==SELF || st[1]==LIVES && home[1]==SELF)
#else
#define OPENS(e) (CLEAN(0,e) && CLEAN(1,e))
#define FREE(h) (FREEON(0,h) && FREEON(1,h) && FREEON(2,h))
#define OWN(e) (st[0]==LIVES && home[0]==SELF || st[1]==LIVES && home[1]==SELF || st[2]==LIVES && home[2]==SELF)
#endif
#define OTHERS(e) (kv!=0 && home[(kv>0->kv-1:0)]!=home[e])
#ifdef NO_TunnelOrigin
#define PASSES(e) true
#else
#define PASSES(e) (tunnel==home[e]+1)                               /* TunnelOrigin */
#endif

inline letgo(e) {
  if :: kv==e+1 -> kv=0 :: else fi;
  if :: change==e+1 -> change=0; phase=0 :: else fi;                /* WithdrawCancelsRequests: and what is under way */
  judged[e]=0; outq[e]=0;                                           /* AckAfterPrograms, FlushBeforeAck */
#ifndef NO_AckAfterTunnel
  if :: kv==0 && change==0 && tunnel==home[e]+1 -> tunnel=0 :: else fi;                /* AckAfterTunnel */
#endif
  owes[e]=0
}

proctype Endpoint(byte e) {
  byte h;
  do
  :: atomic { st[e]==UNBORN && (e==0 || st[(e>0->e-1:0)]!=UNBORN) ->
       if :: e==0 -> h=0 :: e>0 -> h=0 :: e>0 -> h=1 :: e>0 -> h=SELF fi;
       d_step {
         if :: FREE(h) -> st[e]=LIVES; home[e]=h; printf("EV born %d on %d\n", e, h);
               if :: h==SELF ->                                     /* one's own endpoint: the IP is nobody else's here */
                       kv=0; change=0; phase=0;
                       for (i : 0 .. NE-1) { judged[i]=0; outq[i]=0 }
                  :: else fi
            :: else fi; h=0 } }
  :: d_step { st[e]==LIVES && !opened[e] && OPENS(e) -> opened[e]=1; printf("EV open %d\n", e) }
  :: d_step { st[e]==LIVES -> st[e]=DEAD; opened[e]=0; printf("EV close %d\n", e) }
  :: d_step { st[e]==DEAD && owes[e] -> letgo(e); printf("EV withdraw of %d acked\n", e) }
  :: d_step { kv==e+1 -> kv=0; printf("EV lease of %d ends\n", e) }
  /* the receiver learns of it: break before make */
  :: d_step { st[e]==LIVES && opened[e] && home[e]!=SELF && !OWN(e) && kv!=e+1 && change==0 &&              /* MoveSerial */
#ifdef NO_MoveDeleteFirst
              (kv==0 || OTHERS(e) || kv<=e+1) ->
#else
              (kv==0 || !OTHERS(e) && kv<=e+1) ->                   /* OtherNodesLeaseWins, MoveDeleteFirst */
       kv=0;
#endif
       owes[e]=1; change=e+1; phase=1; printf("EV %d granted\n", e) }
#ifdef NO_MoveSerial
  :: d_step { st[e]==LIVES && opened[e] && home[e]!=SELF && !OWN(e) && kv==0 && change!=0 && change!=e+1 && tunnel==home[e]+1 ->
       owes[e]=1; kv=e+1; printf("EV %d renewed meanwhile\n", e) }
#endif
  :: d_step { change==e+1 && phase==1 -> phase=2;
#ifndef NO_MoveFlush
       for (i : 0 .. NE-1) { judged[i]=0; outq[i]=0 };              /* MoveFlush */
#endif
       printf("EV queues towards the IP are empty\n") }
#ifdef NO_MoveTunnelBeforeVouch
  :: d_step { change==e+1 && phase==2 -> phase=3; for (i : 0 .. NE-1) { inq[i]=0 }; kv=e+1; printf("EV vouch of %d written\n", e) }
  :: d_step { change==e+1 && phase==3 -> change=0; phase=0; tunnel=home[e]+1; printf("EV tunnel to %d\n", home[e]) }
#else
  :: d_step { change==e+1 && phase==2 -> phase=3; tunnel=home[e]+1; printf("EV tunnel to %d\n", home[e]) }
  :: d_step { change==e+1 && phase==3 -> change=0; phase=0;         /* MoveTunnelBeforeVouch */
#ifndef NO_MoveWaitPrograms
       for (i : 0 .. NE-1) { inq[i]=0 };                            /* MoveWaitPrograms: and the receive queues */
#endif
       kv=e+1; printf("EV vouch of %d written\n", e) }
#endif
  /* its packets to the receiver */
  :: d_step { st[e]==LIVES && opened[e] && home[e]!=SELF && !flying[e] -> flying[e]=1; printf("EV %d sends\n", e) }
  :: d_step { flying[e] -> flying[e]=0; if :: PASSES(e) -> inq[e]=1 :: else fi; printf("EV packet of %d at the tunnel\n", e) }
#ifdef REACH
  :: d_step { inq[e] && kv==e+1 && e>0 && home[e]!=home[0] && outq[e] ->
       printf("P0: packets of and for endpoint %d pass though the IP was another node's\n", e); assert(false) }
#endif
  :: d_step { inq[e] -> inq[e]=0;
#ifdef NO_StampLocalDelivery
       if :: OWN(e) -> printf("P1: a packet of endpoint %d, from the tunnel, is taken as the own endpoint's\n", e); assert(false) :: else fi;
#endif
       if :: !OWN(e) && kv!=0 && kv!=e+1 -> printf("P1: a packet of endpoint %d is taken as %d's\n", e, kv-1); assert(false) :: else fi }
  /* local delivery: the receiver's own endpoint talks to its neighbour */
#ifdef NO_StampLocalDelivery
  :: d_step { st[e]==LIVES && opened[e] && home[e]==SELF && kv!=0 ->
       printf("P1: a packet of the own endpoint %d is taken as %d's\n", e, kv-1); assert(false) }
#endif
  /* the receiver's packets to the IP, meant for e */
  :: d_step { kv==e+1 && !judged[e] -> judged[e]=1; printf("EV a packet is judged as meant for %d\n", e) }
  :: d_step { judged[e] -> judged[e]=0; outq[e]=1; printf("EV it is queued\n") }
  :: d_step { outq[e] -> outq[e]=0; printf("EV the tunnel takes the packet for %d to node %d\n", e, tunnel-1);
       if :: tunnel!=0 && tunnel!=home[e]+1 && !FREE(tunnel-1) ->
            printf("P2: the packet for %d goes to node %d, whose endpoint has the IP\n", e, tunnel-1); assert(false)
          :: else fi }
  od
}
proctype Agent() {
  do
  :: d_step { change!=0 -> change=0; phase=0; printf("EV the receiver's agent restarts\n") }
  od
}
init { atomic { run Endpoint(0); run Endpoint(1);
#if NE>2
  run Endpoint(2);
#endif
  run Agent() } }
