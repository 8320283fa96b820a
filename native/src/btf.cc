/* Struct layouts out of BTF: what the C compiler really made, for the test that compares them with TypeScript. */
#include "support.h"

#include <bpf/btf.h>
#include <bpf/libbpf.h>
#include <errno.h>

#include <memory>

namespace cs {

struct BtfFree {
	void operator()(btf *types) const { btf__free(types); }
};

static Napi::Value describe(Napi::Env env, const btf *types, const std::string &name)
{
	const int id = btf__find_by_name_kind(types, name.c_str(), BTF_KIND_STRUCT);
	if (id < 0)
		throw_errno(env, "btf__find_by_name_kind", id, "no struct " + name);
	const btf_type *type = btf__type_by_id(types, static_cast<uint32_t>(id));
	Napi::Array members = Napi::Array::New(env);
	for (uint32_t i = 0; i < btf_vlen(type); i++) {
		const btf_member *member = btf_members(type) + i;
		const uint32_t bits = btf_member_bitfield_size(type, i);
		const int64_t size = bits != 0 ? (bits + 7) / 8 : btf__resolve_size(types, member->type);
		if (size < 0)
			throw_errno(env, "btf__resolve_size", static_cast<int>(size), name);
		const char *member_name = btf__name_by_offset(types, member->name_off);
		Napi::Object described = Napi::Object::New(env);
		described.Set("name", Napi::String::New(env, member_name != nullptr ? member_name : ""));
		described.Set("offset", Napi::Number::New(env, btf_member_bit_offset(type, i) / 8));
		described.Set("size", Napi::Number::New(env, static_cast<double>(size)));
		members.Set(i, described);
	}
	Napi::Object result = Napi::Object::New(env);
	result.Set("name", name);
	result.Set("size", Napi::Number::New(env, type->size));
	result.Set("members", members);
	return result;
}

static Napi::Value btf_structs(const Napi::CallbackInfo &info)
{
	const Napi::Env env = info.Env();
	const bool kernel = info.Length() == 0 || info[0].IsUndefined();
	const std::string path = kernel ? "" : arg_string(info, 0, "path");
	if (info.Length() < 2 || !info[1].IsArray())
		throw_type(env, "names must be an array");
	libbpf_log_clear();
	const std::unique_ptr<btf, BtfFree> types(kernel ? btf__load_vmlinux_btf() : btf__parse(path.c_str(), nullptr));
	if (!types)
		throw_errno(env, "btf__parse", errno, path);
	const Napi::Array names = info[1].As<Napi::Array>();
	Napi::Array result = Napi::Array::New(env, names.Length());
	for (uint32_t i = 0; i < names.Length(); i++)
		result.Set(i, describe(env, types.get(), as_string(env, names.Get(i), "name")));
	return result;
}

void init_btf(Napi::Env env, Napi::Object exports)
{
	exports.Set("btfStructs", Napi::Function::New(env, btf_structs, "btfStructs"));
}

} // namespace cs
