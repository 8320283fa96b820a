/* Attachment: tcx links by the bare system call (libbpf 1.1 has no word for them), clsact filters through libbpf. */
#include "support.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <linux/bpf.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace cs {

/* The head of union bpf_attr for BPF_LINK_CREATE; the numbers are the kernel's since 6.6. */
struct LinkCreate {
	uint32_t prog_fd;
	uint32_t target_ifindex;
	uint32_t attach_type;
	uint32_t flags;
	uint32_t relative_fd_or_id;
	uint32_t pad;
	uint64_t expected_revision;
};
static_assert(sizeof(LinkCreate) == 32);
static constexpr uint32_t tcx_ingress = 46, tcx_egress = 47;
/* BPF_F_BEFORE. Before nobody named: at the head of the hook's chain, so that nobody's verdict keeps a packet from ours. */
static constexpr uint32_t tcx_before = 1u << 3;

static int tcx_create(int prog_fd, uint32_t ifindex, bool ingress)
{
	LinkCreate attr = {};
	attr.prog_fd = static_cast<uint32_t>(prog_fd);
	attr.target_ifindex = ifindex;
	attr.attach_type = ingress ? tcx_ingress : tcx_egress;
	attr.flags = tcx_before;
	return static_cast<int>(syscall(__NR_bpf, BPF_LINK_CREATE, &attr, sizeof(attr)));
}

static bool arg_ingress(const Napi::CallbackInfo &info, size_t index)
{
	const std::string direction = arg_string(info, index, "direction");
	if (direction != "ingress" && direction != "egress")
		throw_type(info.Env(), "direction must be 'ingress' or 'egress'");
	return direction == "ingress";
}

/* A program on an interface that cannot exist: a kernel with tcx misses the interface, one without does not know the type. */
static Napi::Value tcx_supported(const Napi::CallbackInfo &info)
{
	const bpf_insn pass[] = {
		{BPF_ALU64 | BPF_MOV | BPF_K, 0, 0, 0, 0},
		{BPF_JMP | BPF_EXIT, 0, 0, 0, 0},
	};
	const Fd program(bpf_prog_load(BPF_PROG_TYPE_SCHED_CLS, "cs_probe", "GPL", pass, 2, nullptr));
	if (program.get() < 0)
		throw_errno(info.Env(), "bpf(PROG_LOAD)", errno);
	const Fd link(tcx_create(program.get(), INT32_MAX, true));
	return Napi::Boolean::New(info.Env(), link.get() >= 0 || errno == ENODEV);
}

static Napi::Value tcx_attach(const Napi::CallbackInfo &info)
{
	const int program = arg_fd(info, 0, "progFd");
	const uint32_t ifindex = arg_u32(info, 1, "ifindex");
	const bool ingress = arg_ingress(info, 2);
	const int link = tcx_create(program, ifindex, ingress);
	if (link < 0)
		throw_errno(info.Env(), "bpf(LINK_CREATE)", errno, "interface " + std::to_string(ifindex));
	return Napi::Number::New(info.Env(), link);
}

static void link_update(const Napi::CallbackInfo &info)
{
	const int link = arg_fd(info, 0, "linkFd");
	const int program = arg_fd(info, 1, "progFd");
	if (bpf_link_update(link, program, nullptr) < 0)
		throw_errno(info.Env(), "bpf(LINK_UPDATE)", errno);
}

/* At once, whoever else holds the link. To close or unpin it would only ask the kernel to do so later. */
static Napi::Value link_detach(const Napi::CallbackInfo &info)
{
	const int rc = bpf_link_detach(arg_fd(info, 0, "linkFd"));
	if (rc < 0 && errno != ENOLINK)
		throw_errno(info.Env(), "bpf(LINK_DETACH)", errno);
	return Napi::Boolean::New(info.Env(), rc == 0);
}

static bpf_tc_hook hook_of(uint32_t ifindex, bool ingress)
{
	bpf_tc_hook hook = {};
	hook.sz = sizeof(hook);
	hook.ifindex = static_cast<int>(ifindex);
	hook.attach_point = ingress ? BPF_TC_INGRESS : BPF_TC_EGRESS;
	return hook;
}

struct ClsactArgs {
	uint32_t ifindex;
	bool ingress;
	uint32_t priority;
	uint32_t handle;
};

static ClsactArgs clsact_args(const Napi::CallbackInfo &info, size_t first)
{
	const ClsactArgs args = {arg_u32(info, first, "ifindex"), arg_ingress(info, first + 1), arg_u32(info, first + 2, "priority"),
				 arg_u32(info, first + 3, "handle")};
	/* Zero would let the kernel choose, or mean all of them when detaching. */
	if (args.ifindex == 0 || args.ifindex > INT32_MAX || args.priority == 0 || args.priority > UINT16_MAX || args.handle == 0)
		throw_type(info.Env(), "ifindex, priority (at most 65535) and handle must not be zero");
	return args;
}

static void clsact_attach(const Napi::CallbackInfo &info)
{
	const int program = arg_fd(info, 0, "progFd");
	const ClsactArgs args = clsact_args(info, 1);
	libbpf_log_clear();
	bpf_tc_hook hook = hook_of(args.ifindex, args.ingress);
	hook.attach_point = static_cast<bpf_tc_attach_point>(BPF_TC_INGRESS | BPF_TC_EGRESS);
	if (const int rc = bpf_tc_hook_create(&hook); rc < 0 && rc != -EEXIST)
		throw_errno(info.Env(), "bpf_tc_hook_create", rc, libbpf_log_tail());
	hook = hook_of(args.ifindex, args.ingress);
	bpf_tc_opts opts = {};
	opts.sz = sizeof(opts);
	opts.prog_fd = program;
	opts.handle = args.handle;
	opts.priority = args.priority;
	opts.flags = BPF_TC_F_REPLACE;
	if (const int rc = bpf_tc_attach(&hook, &opts); rc < 0)
		throw_errno(info.Env(), "bpf_tc_attach", rc, libbpf_log_tail());
}

static Napi::Value clsact_detach(const Napi::CallbackInfo &info)
{
	const ClsactArgs args = clsact_args(info, 0);
	libbpf_log_clear();
	const bpf_tc_hook hook = hook_of(args.ifindex, args.ingress);
	bpf_tc_opts opts = {};
	opts.sz = sizeof(opts);
	opts.handle = args.handle;
	opts.priority = args.priority;
	const int rc = bpf_tc_detach(&hook, &opts);
	/* ENOENT: no such filter; EINVAL: no qdisc; ENODEV: no interface. All mean that nothing was there. */
	if (rc < 0 && rc != -ENOENT && rc != -EINVAL && rc != -ENODEV)
		throw_errno(info.Env(), "bpf_tc_detach", rc, libbpf_log_tail());
	return Napi::Boolean::New(info.Env(), rc == 0);
}

void init_links(Napi::Env env, Napi::Object exports)
{
	exports.Set("tcxSupported", Napi::Function::New(env, tcx_supported, "tcxSupported"));
	exports.Set("tcxAttach", Napi::Function::New(env, tcx_attach, "tcxAttach"));
	exports.Set("linkUpdate", Napi::Function::New(env, link_update, "linkUpdate"));
	exports.Set("linkDetach", Napi::Function::New(env, link_detach, "linkDetach"));
	exports.Set("clsactAttach", Napi::Function::New(env, clsact_attach, "clsactAttach"));
	exports.Set("clsactDetach", Napi::Function::New(env, clsact_detach, "clsactDetach"));
}

} // namespace cs
