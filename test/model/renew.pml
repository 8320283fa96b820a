/* One renewal serves a channel: the receiver names the version that is in force in its kernel maps, the host extends every lease of the channel
 * at once, or refuses. One host, one receiver, endpoints on IPs of their own; the host's version rises with each withdraw to this peer.
 *
 * P3: nobody is believed longer than a lease (the receiver's clock) after its node stopped vouching for it.
 */
#ifndef NE
#define NE 2
#endif
#ifndef L
#define L 2
#endif
#define B(i) (1<<(i))
#define UNBORN 0
#define LIVES 1
#define DEAD 2
byte st[NE];
byte version;           /* host: withdraws to this peer so far, in this life of the agent */
byte at[NE];            /* host: the version that withdraws it */
byte heard, applied;    /* receiver: withdraws that came, and that are in force in the kernel's map */
byte kernel;            /* receiver: endpoints in its kernel map, pinned */
byte lease;             /* receiver: what is left of the channel's lease */
byte age, named, answer;/* the open renewal: what is left of a lease counted from its asking; the version it names; 1 the answer is on the wire */
byte asked, vouched;    /* open requests for single endpoints, replies on the wire */
bool acked;             /* host's agent: the peer acked RESET on this channel */
byte late[NE];
hidden byte i;
#define LATE(e) late[e]

#ifdef NO_RenewalNamesApplied
#define NAMES heard
#else
#define NAMES applied                                               /* RenewalNamesVersion: what is applied */
#endif
proctype Endpoint(byte e) {
  do
  :: d_step { st[e]==UNBORN && acked -> st[e]=LIVES; printf("EV born %d\n", e) }
  :: d_step { st[e]==LIVES && acked -> st[e]=DEAD; version++; at[e]=version; printf("EV close %d, version %d\n", e, version) }
  :: d_step { st[e]==LIVES && !acked -> st[e]=DEAD; at[e]=255; printf("EV close %d before RESET is acked\n", e) }
  :: d_step { st[e]!=UNBORN && !(asked&B(e)) && acked -> asked=asked|B(e); printf("EV ask for %d\n", e) }
  :: d_step { st[e]==LIVES && (asked&B(e)) && !(vouched&B(e)) && acked -> vouched=vouched|B(e); printf("EV grant %d\n", e) }
  :: d_step { (vouched&B(e)) && lease>0 -> vouched=vouched&~B(e); asked=asked&~B(e); kernel=kernel|B(e); printf("EV apply %d\n", e) }
#ifdef REACH
  :: d_step { st[e]==LIVES && (kernel&B(e)) && version>0 && applied==version && answer==1 && lease<age ->
       printf("P0: a lease is renewed after a withdraw\n"); assert(false) }
#endif
  /* a withdraw is heard, in order; then it is applied: kernel map, tunnel, requests */
  :: d_step { at[e]==heard+1 && st[e]==DEAD && acked -> heard++; printf("EV withdraw of %d heard\n", e) }
  :: d_step { at[e]==applied+1 && st[e]==DEAD && heard>applied -> applied++; kernel=kernel&~B(e); asked=asked&~B(e); vouched=vouched&~B(e); printf("EV withdraw of %d applied\n", e) }
  :: d_step { st[e]==DEAD && (kernel&B(e)) && lease>0 && late[e]>=L ->
       printf("P3: endpoint %d is believed longer than a lease after its end\n", e); assert(false) }
  od
}
proctype Channel() {
  do
  :: d_step { age==0 && acked -> age=L; named=NAMES; answer=0; printf("EV renew, names version %d\n", named) }
#ifdef NO_RenewalRefused
  :: d_step { age>0 && answer==0 && acked -> answer=1; printf("EV renewal granted\n") }
#else
  :: d_step { age>0 && answer==0 && acked && named>=version -> answer=1; printf("EV renewal granted\n") }        /* RenewalNamesVersion: refused if below */
#endif
#ifdef NO_LeaseFromAsking
  :: d_step { answer==1 -> lease=L; age=0; answer=0; named=0; printf("EV renewed\n") }
#else
  :: d_step { answer==1 -> lease=age; age=0; answer=0; named=0; printf("EV renewed\n") }                          /* LeaseFromAsking */
#endif
  :: d_step { age>0 -> age=0; answer=0; named=0; printf("EV renewal lost\n") }
  :: d_step { true -> lease=(lease>0->lease-1:0); age=(age>0->age-1:0);
       if :: age==0 -> answer=0; named=0 :: else fi;
       for (i : 0 .. NE-1) { if :: st[i]==DEAD && late[i]<L -> late[i]++ :: else fi };
#ifndef NO_LeaseEveryPacket
       if :: lease==0 -> kernel=0 :: else fi;
#endif
       printf("EV time\n") }
  /* The host's agent restarts: versions begin anew, the channel is another. RESET names who goes on. */
  :: d_step { acked -> acked=false; version=0; heard=0; applied=0; asked=0; vouched=0; age=0; answer=0; named=0;
       for (i : 0 .. NE-1) { if :: st[i]==DEAD -> at[i]=255 :: else fi };
#ifdef NO_RenewalAfterReset
       acked=true;
#endif
       printf("EV the host's agent restarts\n") }
  :: d_step { !acked -> acked=true;
       for (i : 0 .. NE-1) { if :: st[i]!=LIVES -> kernel=kernel&~B(i) :: else fi };
       printf("EV RESET acked\n") }
  od
}
init { atomic { acked=true; lease=0; run Endpoint(0); run Endpoint(1);
#if NE>2
  run Endpoint(2);
#endif
  run Channel() } }
