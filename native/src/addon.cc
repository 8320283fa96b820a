/* The addon's table of contents. native/index.ts is its typed face and says what each function promises. */
#include "support.h"

static Napi::Object init(Napi::Env env, Napi::Object exports)
{
	cs::libbpf_log_install();
	cs::init_bpf(env, exports);
	cs::init_btf(env, exports);
	cs::init_maps(env, exports);
	cs::init_quiesce(env, exports);
	cs::init_ringbuf(env, exports);
	cs::init_links(env, exports);
	cs::init_inspect(env, exports);
	cs::init_netlink(env, exports);
	cs::init_tun(env, exports);
	cs::init_process(env, exports);
	return exports;
}

NODE_API_MODULE(NODE_GYP_MODULE_NAME, init)
