/* One node name, several incarnations of it that run at once: the node was attested anew while a clone or a restored snapshot of its earlier
 * life still runs, with that life's keys, endpoints and open fences. Incarnation i+1 has endpoint i on the one IP. Two channels for
 * each, because both sides may dial at once; a channel may close at any moment, the receiver's agent may restart.
 *
 * P1, P2 as in lease.pml.   P5: after a RESET was acked, nothing of a lower incarnation comes into force any more.
 */
#ifndef NI
#define NI 3
#endif
#define NC 2
#define B(i) (1<<(i))
#define K(i,k) ((i)*NC+(k))
byte lives;             /* incarnations 1..lives have been issued; all of them may run */
byte up[NI*NC];         /* the receiver's side: 0 closed, 1 open, 2 RESET acked */
byte opened;            /* kernels of the node: endpoints whose fence is open to the receiver */
byte seen;              /* receiver's agent: the highest incarnation that it met */
byte disk;              /* what of that survives the agent */
byte highest;           /* the highest that it acked: for P5 only */
byte kv, key;           /* receiver's kernel: whose the IP is; tunnel: whose key the node's is: incarnation, 0 nobody */
byte flying;            /* packets of endpoints under way, encrypted with their incarnation's key */
hidden byte j;

#ifdef NO_BarLowerIncarnation
#define BARRED(i) false
#else
#define BARRED(i) (i+1<seen)                                        /* BarLowerIncarnation */
#endif
#ifdef NO_TunnelOfIncarnation
#define BOUND(i) (key!=0)
#else
#define BOUND(i) (key==i+1)                                         /* TunnelOfIncarnation: in force only with its own key */
#endif
proctype Node(byte i) {
  do
  :: d_step { lives==i -> lives=i+1; printf("EV incarnation %d is attested\n", i+1) }
  :: d_step { (opened&B(i))!=0 && (flying&B(i))==0 -> flying=flying|B(i); printf("EV endpoint %d sends\n", i) }
  :: d_step { (flying&B(i))!=0 -> flying=flying&~B(i); printf("EV a packet of endpoint %d comes\n", i);
       if :: key==i+1 && kv!=0 && kv!=i+1 -> printf("P1: a packet of endpoint %d is taken as %d's\n", i, kv-1); assert(false) :: else fi }
#ifdef REACH
  :: d_step { i>0 && kv==i+1 && key==i+1 && (flying&B(i))!=0 && (flying&B((i>0->i-1:0)))!=0 ->
       printf("P0: incarnation %d is believed while an earlier one sends\n", i+1); assert(false) }
#endif
  :: d_step { kv==i+1 -> kv=0; printf("EV the lease of %d ends\n", i) }
  :: d_step { kv==i+1 && key!=0 && key!=i+1 && (opened&B((key>0->key-1:0)))!=0 ->
       printf("P2: a packet for endpoint %d goes to %d\n", i, key-1); assert(false) }
  od
}
proctype Channel(byte i, k) {
  do
  :: d_step { lives>i && up[K(i,k)]==0 && !BARRED(i) -> up[K(i,k)]=1;
       seen=(i+1>seen -> i+1 : seen);
#ifndef NO_BarRemembered
       disk=seen;                                                   /* BarRemembered */
#endif
       printf("EV channel %d to incarnation %d\n", k, i+1) }
  :: d_step { up[K(i,k)]==1 && !BARRED(i) -> up[K(i,k)]=2;           /* RESET, acked */
       if :: kv!=i+1 -> kv=0 :: else fi;                            /* ResetDeletes: lease.pml */
#ifndef NO_TunnelOfIncarnation
       if :: key!=i+1 -> key=0 :: else fi;
#endif
#ifndef NO_LowerChannelsClose
       for (j : 0 .. NI*NC-1) { if :: j<i*NC -> up[j]=0 :: else fi };       /* LowerChannelsClose */
#endif
       highest=(i+1>highest -> i+1 : highest);
       opened=opened|B(i); printf("EV RESET of incarnation %d acked on channel %d\n", i+1, k) }
  :: d_step { up[K(i,k)]==2 && key!=i+1 && kv==0 -> key=i+1; printf("EV tunnel key of incarnation %d\n", i+1) }
#ifdef NO_LowerChannelsClose
  :: d_step { up[K(i,k)]==2 && key!=i+1 -> key=i+1; printf("EV tunnel key of incarnation %d, on channel %d\n", i+1, k) }
#endif
  :: d_step { up[K(i,k)]==2 && kv!=i+1 && kv<=i+1 && BOUND(i) -> kv=i+1; printf("EV vouch of %d applied\n", i);
       if :: i+1<highest -> printf("P5: incarnation %d comes into force after %d\n", i+1, highest); assert(false) :: else fi }
  :: d_step { up[K(i,k)]!=0 -> up[K(i,k)]=0; printf("EV channel %d to incarnation %d closes\n", k, i+1) }
  od
}
proctype Agent() {
  do
  :: d_step { true -> for (j : 0 .. NI*NC-1) { up[j]=0 };
       seen=(kv>disk -> kv : disk); printf("EV the receiver's agent restarts\n") }
  od
}
init { atomic { run Node(0); run Node(1); run Channel(0,0); run Channel(0,1); run Channel(1,0); run Channel(1,1);
#if NI>2
  run Node(2); run Channel(2,0); run Channel(2,1);
#endif
  run Agent() } }
