/* Something good happens: nothing fails here (but a peer that is dead for good, a host that is dead for good), every process that can go on does
 * (weak fairness). An IP of node 0 has an owner, then a successor; two peers held a lease on the owner, peer 0 over a channel that
 * both sides dial at once, peer 1 is dead. Another IP was node 0's and is now node 3's; node 0 will never say so.
 */
#define LOST 9
byte link[2];           /* channel dialled by side 0, by side 1: 0 none, 1 dialling, 2 there */
bool chosen[2]; byte closes[2];
byte owner;             /* 0 the first lives, 1 it ended, 2 the successor was born */
byte owes = 3;          /* peers that may hold a lease on the first */
byte opened;            /* peers that the successor's fence is open to */
byte drain = 2;
byte reset;             /* peer 0: 0, 1 RESET acked on the channel */
byte withdrawn;         /* peer 0: 0 not said, 1 said, 2 acked */
byte kv0 = 1;           /* peer 0 believes in: 1 the first, 2 the successor, 0 nobody */
byte asked;             /* peer 0 asked for the IP and got: 1 asked, 2 a vouch */
byte proved;            /* the pair: 1 the peer verified and wrote, 2 both wrote, the held packet goes */
byte other = 2;         /* peer 0, the other IP: what is left of node 0's lease on it; */
byte moved;             /* 1: node 3's vouch is in force */
#define UP (link[0]==2 || link[1]==2)

proctype Side(byte n) { /* both sides dial, and settle which channel stays */
  do
  :: d_step { link[n]==0 && link[1-n]!=2 -> link[n]=1 }
  :: d_step { link[n]==1 -> link[n]=2 }
  :: d_step { link[0]==2 && link[1]==2 && !chosen[n] ->
#ifdef NO_SameChoice
       chosen[n]=1; closes[n]=1-n }
#else
       chosen[n]=1; closes[n]=1 }                                   /* SameChoice: the lower node's stays, on both sides */
#endif
  :: d_step { chosen[n] -> link[closes[n]]=0; chosen[n]=0 }
  od
}
proctype Host() {
  do
  :: d_step { owner==0 -> owner=1 }
  :: d_step { owner==1 -> owner=2 }
  :: d_step { owner>0 && withdrawn==0 && UP && reset -> withdrawn=1 }
  :: d_step { withdrawn==2 && (owes&1) -> owes=owes&~1 }
#ifdef NO_FencePerPeer
  :: d_step { owner==2 && owes==0 && drain==0 && opened!=3 -> opened=3 }
#else
  :: d_step { owner==2 && !(owes&1) && drain==0 && !(opened&1) -> opened=opened|1 }     /* FencePerPeer */
#endif
  :: d_step { asked==1 && (opened&1) && UP -> asked=2 }
#ifndef NO_ProofAnswered
  :: d_step { proved==1 -> proved=2 }                                 /* ProofAnswered */
#endif
  od
}
proctype Peer() {
  do
  :: d_step { UP && !reset -> reset=1 }
  :: d_step { withdrawn==1 -> kv0=0; withdrawn=2 }
  :: d_step { asked==0 && kv0==0 && UP && reset -> asked=1 }        /* AskAgain */
#ifdef NO_AskAgain
  :: d_step { asked==1 && !(opened&1) -> asked=LOST }               /* refused while fenced, and never asked again */
#endif
  :: d_step { asked==2 && kv0!=2 -> kv0=2 }
  :: d_step { kv0==2 && proved==0 -> proved=1 }
#ifndef NO_LeaseEnds
  :: d_step { other==0 && !moved -> moved=1 }                       /* OtherNodesLeaseWins, for as long as it lives */
#endif
  od
}
proctype Time() {
  do
  :: d_step { owner==2 && drain>0 -> drain-- }
  :: d_step { other>0 -> other-- }
  od
}
init { atomic { run Side(0); run Side(1); run Host(); run Peer(); run Time() } }

/* One channel of the two stays; the successor opens to the living peer though the other is dead; the pair is proved; the IP that moved is taken. */
ltl good { (<> [] UP) && (<> (opened & 1)) && (<> (proved == 2)) && (<> (moved == 1)) }
