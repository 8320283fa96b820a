/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* May the endpoint and what the other node vouches for meet yet? (FenceSend, FenceReceive.) Until the node has let go of whoever
 * had the endpoint's addresses before, it could take the one for the other. */
#ifndef CS_FENCE_H
#define CS_FENCE_H

#include "case.h"
#include "identity.h"

static __always_inline __u8 fence_refusal(const struct cs_case *c, const struct cs_owner *remote)
{
	struct cs_fence_key key = { .endpoint = c->endpoint, .node = remote->node };

	return c->fences && bpf_map_lookup_elem(&cs_fences, &key) ? CS_DROP_FENCED : 0;
}

#endif
