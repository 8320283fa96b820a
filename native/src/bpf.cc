/* BPF objects: load, pin, test run. */
#include "support.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <linux/bpf.h>

#include <memory>
#include <vector>

namespace cs {

struct ObjectCloser {
	void operator()(bpf_object *object) const { bpf_object__close(object); }
};
using Object = std::unique_ptr<bpf_object, ObjectCloser>;

static bpf_map *find_map(Napi::Env env, bpf_object *object, const std::string &name)
{
	bpf_map *map = bpf_object__find_map_by_name(object, name.c_str());
	if (map == nullptr)
		throw_errno(env, "bpf_object__find_map_by_name", ENOENT, "the object has no map " + name);
	return map;
}

template <typename Apply>
static void for_each_map(Napi::Env env, bpf_object *object, const std::optional<Napi::Object> &settings, Apply apply)
{
	if (!settings)
		return;
	const Napi::Array names = settings->GetPropertyNames();
	for (uint32_t i = 0; i < names.Length(); i++) {
		const std::string name = as_string(env, names.Get(i), "map name");
		apply(find_map(env, object, name), name, settings->Get(name));
	}
}

static Napi::Value load_object(const Napi::CallbackInfo &info)
{
	const Napi::Env env = info.Env();
	const Napi::Object options = arg_object(info, 0, "options");
	const std::string path = as_string(env, options.Get("path"), "path");
	libbpf_log_clear();

	const Object object(bpf_object__open_file(path.c_str(), nullptr));
	if (!object)
		throw_errno(env, "bpf_object__open", errno, path + " " + libbpf_log_tail());

	for_each_map(env, object.get(), prop_object(options, "maxEntries"),
		     [&](bpf_map *map, const std::string &name, const Napi::Value &value) {
			     if (const int rc = bpf_map__set_max_entries(map, as_u32(env, value, "maxEntries." + name)); rc < 0)
				     throw_errno(env, "bpf_map__set_max_entries", rc, name);
		     });
	for_each_map(env, object.get(), prop_object(options, "pins"),
		     [&](bpf_map *map, const std::string &name, const Napi::Value &value) {
			     if (const int rc = bpf_map__set_pin_path(map, as_string(env, value, "pins." + name).c_str()); rc < 0)
				     throw_errno(env, "bpf_map__set_pin_path", rc, name);
		     });
	if (const int rc = bpf_object__load(object.get()); rc < 0)
		throw_errno(env, "bpf_object__load", rc, path + "\n" + libbpf_log_tail());

	/* The object closes its own descriptors; the caller gets copies, collected so that none leaks when one fails. */
	struct Entry {
		std::string name;
		Fd fd;
		bpf_map *map;
	};
	std::vector<Entry> entries;
	bpf_map *map;
	bpf_object__for_each_map(map, object.get()) {
		if (!bpf_map__is_internal(map))
			entries.push_back({bpf_map__name(map), Fd(dup_fd(env, bpf_map__fd(map))), map});
	}
	bpf_program *program;
	bpf_object__for_each_program(program, object.get()) {
		if (bpf_program__fd(program) >= 0)
			entries.push_back({bpf_program__name(program), Fd(dup_fd(env, bpf_program__fd(program))), nullptr});
	}

	const Napi::Object maps = Napi::Object::New(env);
	const Napi::Object programs = Napi::Object::New(env);
	for (Entry &entry : entries) {
		const Napi::Number fd = Napi::Number::New(env, entry.fd.get());
		if (entry.map == nullptr) {
			programs.Set(entry.name, fd);
			continue;
		}
		bpf_map_info map_info = {};
		uint32_t length = sizeof(map_info);
		if (bpf_obj_get_info_by_fd(entry.fd.get(), &map_info, &length) < 0)
			throw_errno(env, "bpf(OBJ_GET_INFO_BY_FD)", errno, entry.name);
		Napi::Object described = Napi::Object::New(env);
		described.Set("fd", fd);
		described.Set("id", Napi::Number::New(env, map_info.id));
		described.Set("type", Napi::Number::New(env, bpf_map__type(entry.map)));
		described.Set("keySize", Napi::Number::New(env, bpf_map__key_size(entry.map)));
		described.Set("valueSize", Napi::Number::New(env, bpf_map__value_size(entry.map)));
		described.Set("maxEntries", Napi::Number::New(env, bpf_map__max_entries(entry.map)));
		maps.Set(entry.name, described);
	}
	Napi::Object result = Napi::Object::New(env);
	result.Set("maps", maps);
	result.Set("programs", programs);
	for (Entry &entry : entries)
		entry.fd.release();
	return result;
}

static void obj_pin(const Napi::CallbackInfo &info)
{
	const int fd = arg_fd(info, 0, "fd");
	const std::string path = arg_string(info, 1, "path");
	if (bpf_obj_pin(fd, path.c_str()) < 0)
		throw_errno(info.Env(), "bpf(OBJ_PIN)", errno, path);
}

static Napi::Value obj_get(const Napi::CallbackInfo &info)
{
	const std::string path = arg_string(info, 0, "path");
	const int fd = bpf_obj_get(path.c_str());
	if (fd < 0)
		throw_errno(info.Env(), "bpf(OBJ_GET)", errno, path);
	return Napi::Number::New(info.Env(), fd);
}

static Napi::Value prog_test_run(const Napi::CallbackInfo &info)
{
	const Napi::Env env = info.Env();
	const int fd = arg_fd(info, 0, "fd");
	const Napi::Object options = arg_object(info, 1, "options");
	const Bytes packet = as_bytes(env, options.Get("packet"), "packet");
	if (packet.size() > 65535)
		throw_type(env, "packet must have at most 65535 bytes");

	__sk_buff context = {};
	context.mark = prop_u32(options, "mark").value_or(0);
	context.ifindex = prop_u32(options, "ifindex").value_or(0);
	context.gso_size = prop_u32(options, "gsoSize").value_or(0);
	context.gso_segs = prop_u32(options, "gsoSegments").value_or(0);
	std::vector<uint8_t> out(packet.size() + 512);
	const uint32_t repeat = prop_u32(options, "repeat").value_or(1);
	if (repeat > INT32_MAX)
		throw_type(env, "repeat must be at most 2147483647");

	bpf_test_run_opts run = {};
	run.sz = sizeof(run);
	run.data_in = packet.data();
	run.data_size_in = static_cast<uint32_t>(packet.size());
	run.data_out = out.data();
	run.data_size_out = static_cast<uint32_t>(out.size());
	run.ctx_in = &context;
	run.ctx_size_in = sizeof(context);
	run.ctx_out = &context;
	run.ctx_size_out = sizeof(context);
	run.repeat = static_cast<int>(repeat);
	if (bpf_prog_test_run_opts(fd, &run) < 0)
		throw_errno(env, "bpf(PROG_TEST_RUN)", errno);

	Napi::Object result = Napi::Object::New(env);
	result.Set("retval", Napi::Number::New(env, static_cast<int32_t>(run.retval)));
	result.Set("durationNs", Napi::Number::New(env, run.duration));
	result.Set("packet", Napi::Buffer<uint8_t>::Copy(env, out.data(), run.data_size_out));
	result.Set("mark", Napi::Number::New(env, context.mark));
	return result;
}

void init_bpf(Napi::Env env, Napi::Object exports)
{
	exports.Set("loadObject", Napi::Function::New(env, load_object, "loadObject"));
	exports.Set("objPin", Napi::Function::New(env, obj_pin, "objPin"));
	exports.Set("objGet", Napi::Function::New(env, obj_get, "objGet"));
	exports.Set("progTestRun", Napi::Function::New(env, prog_test_run, "progTestRun"));
}

} // namespace cs
