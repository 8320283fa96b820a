/* What stands where: programs of a tcx hook in their order, and what programs and links are. Reading only. */
#include "support.h"

#include <bpf/bpf.h>
#include <errno.h>
#include <linux/bpf.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <vector>

namespace cs {

/* union bpf_attr for BPF_PROG_QUERY; the numbers are the kernel's since 6.6. */
struct ProgQuery {
	uint32_t target_ifindex;
	uint32_t attach_type;
	uint32_t query_flags;
	uint32_t attach_flags;
	uint64_t prog_ids;
	uint32_t count;
	uint32_t pad;
	uint64_t prog_attach_flags;
	uint64_t link_ids;
	uint64_t link_attach_flags;
	uint64_t revision;
};
static_assert(sizeof(ProgQuery) == 64);

/* struct bpf_link_info of a tcx link; older headers do not know it. */
struct TcxLinkInfo {
	uint32_t type;
	uint32_t id;
	uint32_t prog_id;
	uint32_t pad;
	uint32_t ifindex;
	uint32_t attach_type;
	uint8_t rest[64];
};
static constexpr uint32_t link_type_tcx = 11, tcx_ingress = 46, tcx_egress = 47;
static constexpr uint32_t programs_at_most = 64; /* BPF_MPROG_MAX */

static Napi::Value tcx_query(const Napi::CallbackInfo &info)
{
	const Napi::Env env = info.Env();
	const uint32_t ifindex = arg_u32(info, 0, "ifindex");
	const std::string direction = arg_string(info, 1, "direction");
	if (direction != "ingress" && direction != "egress")
		throw_type(env, "direction must be 'ingress' or 'egress'");

	uint32_t programs[programs_at_most] = {}, links[programs_at_most] = {};
	ProgQuery query = {};
	query.target_ifindex = ifindex;
	query.attach_type = direction == "ingress" ? tcx_ingress : tcx_egress;
	query.prog_ids = reinterpret_cast<uintptr_t>(programs);
	query.link_ids = reinterpret_cast<uintptr_t>(links);
	query.count = programs_at_most;
	Napi::Array result = Napi::Array::New(env);
	if (syscall(__NR_bpf, BPF_PROG_QUERY, &query, sizeof(query)) < 0) {
		if (errno == ENOENT) /* nothing was ever attached there */
			return result;
		throw_errno(env, "bpf(PROG_QUERY)", errno, "interface " + std::to_string(ifindex));
	}
	for (uint32_t i = 0; i < query.count && i < programs_at_most; i++) {
		Napi::Object entry = Napi::Object::New(env);
		entry.Set("programId", Napi::Number::New(env, programs[i]));
		entry.Set("linkId", Napi::Number::New(env, links[i]));
		result.Set(i, entry);
	}
	return result;
}

static Napi::Value link_info(const Napi::CallbackInfo &info)
{
	const Napi::Env env = info.Env();
	TcxLinkInfo link = {};
	uint32_t length = sizeof(link);
	if (bpf_obj_get_info_by_fd(arg_fd(info, 0, "linkFd"), &link, &length) < 0)
		throw_errno(env, "bpf(OBJ_GET_INFO_BY_FD)", errno);
	Napi::Object result = Napi::Object::New(env);
	result.Set("id", Napi::Number::New(env, link.id));
	result.Set("programId", Napi::Number::New(env, link.prog_id));
	result.Set("tcx", Napi::Boolean::New(env, link.type == link_type_tcx));
	result.Set("ifindex", Napi::Number::New(env, link.type == link_type_tcx ? link.ifindex : 0));
	result.Set("direction", link.attach_type == tcx_ingress ? "ingress" : "egress");
	return result;
}

static Napi::Value prog_info(const Napi::CallbackInfo &info)
{
	const Napi::Env env = info.Env();
	const int fd = arg_fd(info, 0, "progFd");
	bpf_prog_info program = {};
	uint32_t length = sizeof(program);
	if (bpf_obj_get_info_by_fd(fd, &program, &length) < 0)
		throw_errno(env, "bpf(OBJ_GET_INFO_BY_FD)", errno);
	std::vector<uint32_t> maps(program.nr_map_ids);
	bpf_prog_info again = {};
	again.nr_map_ids = static_cast<uint32_t>(maps.size());
	again.map_ids = reinterpret_cast<uintptr_t>(maps.data());
	length = sizeof(again);
	if (bpf_obj_get_info_by_fd(fd, &again, &length) < 0)
		throw_errno(env, "bpf(OBJ_GET_INFO_BY_FD)", errno);

	static constexpr char hex[] = "0123456789abcdef";
	std::string tag;
	for (const uint8_t byte : program.tag)
		tag.append({hex[byte >> 4], hex[byte & 15]});
	Napi::Array ids = Napi::Array::New(env);
	for (uint32_t i = 0; i < maps.size() && i < again.nr_map_ids; i++)
		ids.Set(i, Napi::Number::New(env, maps[i]));
	Napi::Object result = Napi::Object::New(env);
	result.Set("id", Napi::Number::New(env, program.id));
	result.Set("tag", tag);
	result.Set("name", std::string(program.name, strnlen(program.name, sizeof(program.name))));
	result.Set("mapIds", ids);
	result.Set("verifiedInstructions", Napi::Number::New(env, program.verified_insns));
	return result;
}

static Napi::Value prog_by_id(const Napi::CallbackInfo &info)
{
	const int fd = bpf_prog_get_fd_by_id(arg_u32(info, 0, "programId"));
	if (fd < 0) {
		if (errno == ENOENT)
			return info.Env().Undefined();
		throw_errno(info.Env(), "bpf(PROG_GET_FD_BY_ID)", errno);
	}
	return Napi::Number::New(info.Env(), fd);
}

void init_inspect(Napi::Env env, Napi::Object exports)
{
	exports.Set("tcxQuery", Napi::Function::New(env, tcx_query, "tcxQuery"));
	exports.Set("linkInfo", Napi::Function::New(env, link_info, "linkInfo"));
	exports.Set("progInfo", Napi::Function::New(env, prog_info, "progInfo"));
	exports.Set("progById", Napi::Function::New(env, prog_by_id, "progById"));
}

} // namespace cs
