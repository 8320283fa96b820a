/* BPF maps, one record or many. The kernel copies as many bytes as the map's own sizes say, whatever buffer it is given:
 * so the sizes are asked of the kernel on every call, never remembered by descriptor number, which may be used again. */
#include "support.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <limits.h>
#include <linux/bpf.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

namespace cs {

static constexpr uint32_t size_limit = 1u << 26; /* beyond any map; guards an allocation against a descriptor that is no map */
static constexpr int kernel_enotsupp = 524;

struct Sizes {
	bpf_map_info info = {};
	uint32_t key = 0;
	uint32_t value = 0; /* as user space sees it: all CPUs' values for a per-CPU map */
};

static bool per_cpu(uint32_t type)
{
	return type == BPF_MAP_TYPE_PERCPU_HASH || type == BPF_MAP_TYPE_PERCPU_ARRAY || type == BPF_MAP_TYPE_LRU_PERCPU_HASH ||
	       type == BPF_MAP_TYPE_PERCPU_CGROUP_STORAGE;
}

static Sizes sizes_of(Napi::Env env, int fd)
{
	Sizes sizes;
	uint32_t length = sizeof(sizes.info);
	if (bpf_obj_get_info_by_fd(fd, &sizes.info, &length) < 0)
		throw_errno(env, "bpf(OBJ_GET_INFO_BY_FD)", errno);
	uint64_t value = sizes.info.value_size;
	if (per_cpu(sizes.info.type)) {
		const int cpus = libbpf_num_possible_cpus();
		if (cpus < 0)
			throw_errno(env, "libbpf_num_possible_cpus", cpus);
		value = ((value + 7) & ~7ull) * static_cast<uint64_t>(cpus);
	}
	if (sizes.info.key_size > size_limit || value > size_limit)
		throw_errno(env, "bpf(OBJ_GET_INFO_BY_FD)", EINVAL, "not a BPF map");
	sizes.key = sizes.info.key_size;
	sizes.value = static_cast<uint32_t>(value);
	return sizes;
}

static void check_length(Napi::Env env, const Bytes &bytes, uint64_t expected, const char *name)
{
	if (bytes.size() != expected)
		throw_type(env, std::string(name) + " must have " + std::to_string(expected) + " bytes, not " +
					std::to_string(bytes.size()));
}

static bool unsupported(int error)
{
	return error == EINVAL || error == EOPNOTSUPP || error == kernel_enotsupp;
}

static Napi::Value map_info(const Napi::CallbackInfo &info)
{
	const Napi::Env env = info.Env();
	const int fd = arg_fd(info, 0, "fd");
	char target[64] = {};
	if (readlink(("/proc/self/fd/" + std::to_string(fd)).c_str(), target, sizeof(target) - 1) < 0)
		throw_errno(env, "bpf(OBJ_GET_INFO_BY_FD)", EBADF);
	if (strcmp(target, "anon_inode:bpf-map") != 0)
		throw_errno(env, "bpf(OBJ_GET_INFO_BY_FD)", EINVAL, "not a BPF map");
	const Sizes sizes = sizes_of(env, fd);
	Napi::Object result = Napi::Object::New(env);
	result.Set("fd", Napi::Number::New(env, fd));
	result.Set("id", Napi::Number::New(env, sizes.info.id));
	result.Set("type", Napi::Number::New(env, sizes.info.type));
	result.Set("keySize", Napi::Number::New(env, sizes.info.key_size));
	result.Set("valueSize", Napi::Number::New(env, sizes.info.value_size));
	result.Set("maxEntries", Napi::Number::New(env, sizes.info.max_entries));
	return result;
}

static Napi::Value map_lookup(const Napi::CallbackInfo &info)
{
	const Napi::Env env = info.Env();
	const int fd = arg_fd(info, 0, "fd");
	const Bytes key = arg_bytes(info, 1, "key");
	const Sizes sizes = sizes_of(env, fd);
	check_length(env, key, sizes.key, "key");
	Napi::Buffer<uint8_t> value = Napi::Buffer<uint8_t>::New(env, sizes.value);
	if (bpf_map_lookup_elem(fd, key.data(), value.Data()) < 0) {
		if (errno == ENOENT)
			return env.Undefined();
		throw_errno(env, "bpf(MAP_LOOKUP_ELEM)", errno);
	}
	return value;
}

static void map_update(const Napi::CallbackInfo &info)
{
	const Napi::Env env = info.Env();
	const int fd = arg_fd(info, 0, "fd");
	const Bytes key = arg_bytes(info, 1, "key");
	const Bytes value = arg_bytes(info, 2, "value");
	const uint32_t flags = arg_u32_or(info, 3, "flags", BPF_ANY);
	const Sizes sizes = sizes_of(env, fd);
	check_length(env, key, sizes.key, "key");
	check_length(env, value, sizes.value, "value");
	if (bpf_map_update_elem(fd, key.data(), value.data(), flags) < 0)
		throw_errno(env, "bpf(MAP_UPDATE_ELEM)", errno, sizes.info.name);
}

static Napi::Value map_delete(const Napi::CallbackInfo &info)
{
	const Napi::Env env = info.Env();
	const int fd = arg_fd(info, 0, "fd");
	const Bytes key = arg_bytes(info, 1, "key");
	const Sizes sizes = sizes_of(env, fd);
	check_length(env, key, sizes.key, "key");
	if (bpf_map_delete_elem(fd, key.data()) < 0) {
		if (errno == ENOENT)
			return Napi::Boolean::New(env, false);
		throw_errno(env, "bpf(MAP_DELETE_ELEM)", errno, sizes.info.name);
	}
	return Napi::Boolean::New(env, true);
}

static void map_update_batch(const Napi::CallbackInfo &info)
{
	const Napi::Env env = info.Env();
	const int fd = arg_fd(info, 0, "fd");
	const Bytes keys = arg_bytes(info, 1, "keys");
	const Bytes values = arg_bytes(info, 2, "values");
	const uint32_t count = arg_u32(info, 3, "count");
	const Sizes sizes = sizes_of(env, fd);
	check_length(env, keys, uint64_t{count} * sizes.key, "keys");
	check_length(env, values, uint64_t{count} * sizes.value, "values");

	uint32_t written = 0;
	while (written < count) {
		const uint8_t *key = keys.data() + size_t{written} * sizes.key;
		const uint8_t *value = values.data() + size_t{written} * sizes.value;
		uint32_t step = count - written;
		bpf_map_batch_opts opts = {};
		opts.sz = sizeof(opts);
		if (bpf_map_update_batch(fd, key, value, &step, &opts) == 0) {
			written += step;
			continue;
		}
		const int error = errno;
		/* Map types without batches: one by one. The first record tells, so nothing is written twice. */
		if (!unsupported(error) || bpf_map_update_elem(fd, key, value, BPF_ANY) < 0)
			throw_errno(env, "bpf(MAP_UPDATE_BATCH)", error,
				    std::string(sizes.info.name) + ": " + std::to_string(written) + " of " +
					    std::to_string(count) + " records written before it");
		written++;
	}
}

static Napi::Value map_delete_batch(const Napi::CallbackInfo &info)
{
	const Napi::Env env = info.Env();
	const int fd = arg_fd(info, 0, "fd");
	const Bytes keys = arg_bytes(info, 1, "keys");
	const uint32_t count = arg_u32(info, 2, "count");
	const Sizes sizes = sizes_of(env, fd);
	check_length(env, keys, uint64_t{count} * sizes.key, "keys");

	uint32_t done = 0, deleted = 0;
	bool batches = true;
	while (done < count) {
		const uint8_t *key = keys.data() + size_t{done} * sizes.key;
		if (batches) {
			uint32_t step = count - done;
			bpf_map_batch_opts opts = {};
			opts.sz = sizeof(opts);
			const int rc = bpf_map_delete_batch(fd, key, &step, &opts);
			const int error = errno;
			if (rc == 0 || error == ENOENT) {
				/* The kernel stops at a key that is not there and says how many it deleted before. */
				step = std::min(step, count - done);
				deleted += step;
				done += rc == 0 ? step : step + 1;
				continue;
			}
			if (!unsupported(error))
				throw_errno(env, "bpf(MAP_DELETE_BATCH)", error, sizes.info.name);
			batches = false;
		}
		if (bpf_map_delete_elem(fd, key) == 0)
			deleted++;
		else if (errno != ENOENT)
			throw_errno(env, "bpf(MAP_DELETE_ELEM)", errno, sizes.info.name);
		done++;
	}
	return Napi::Number::New(env, deleted);
}

struct Records {
	std::vector<uint8_t> keys, values;
	uint32_t count = 0;
};

static int dump_batches(int fd, const Sizes &sizes, Records &out)
{
	uint32_t chunk = std::clamp(sizes.info.max_entries, 1u, 4096u);
	std::vector<uint8_t> token(std::max<size_t>(sizes.key, 8)), next(token.size()), keys, values;
	bool first = true;
	for (;;) {
		keys.resize(size_t{chunk} * sizes.key);
		values.resize(size_t{chunk} * sizes.value);
		uint32_t got = chunk;
		bpf_map_batch_opts opts = {};
		opts.sz = sizeof(opts);
		const int rc = bpf_map_lookup_batch(fd, first ? nullptr : token.data(), next.data(), keys.data(), values.data(), &got, &opts);
		const int error = errno;
		if (rc < 0 && error == ENOSPC && chunk < (1u << 24)) { /* a hash bucket larger than the chunk */
			chunk *= 2;
			continue;
		}
		if (rc < 0 && error != ENOENT)
			return error;
		got = std::min(got, chunk);
		out.keys.insert(out.keys.end(), keys.begin(), keys.begin() + static_cast<ptrdiff_t>(size_t{got} * sizes.key));
		out.values.insert(out.values.end(), values.begin(), values.begin() + static_cast<ptrdiff_t>(size_t{got} * sizes.value));
		out.count += got;
		if (rc < 0)
			return 0;
		first = false;
		token.swap(next);
	}
}

static int dump_one_by_one(int fd, const Sizes &sizes, Records &out)
{
	std::vector<uint8_t> key(sizes.key), next(sizes.key), value(sizes.value);
	const uint8_t *previous = nullptr;
	/* Twice the map's size is the bound: get_next_key starts over when the key it was given has gone. */
	for (uint64_t turn = 0; turn < 2ull * sizes.info.max_entries + 1; turn++) {
		if (bpf_map_get_next_key(fd, previous, next.data()) < 0)
			return errno == ENOENT ? 0 : errno;
		if (bpf_map_lookup_elem(fd, next.data(), value.data()) == 0) {
			out.keys.insert(out.keys.end(), next.begin(), next.end());
			out.values.insert(out.values.end(), value.begin(), value.end());
			out.count++;
		} else if (errno != ENOENT) {
			return errno;
		}
		key.swap(next);
		previous = key.data();
	}
	return EAGAIN;
}

static Napi::Value map_dump(const Napi::CallbackInfo &info)
{
	const Napi::Env env = info.Env();
	const int fd = arg_fd(info, 0, "fd");
	const Sizes sizes = sizes_of(env, fd);
	Records records;
	int error = dump_batches(fd, sizes, records);
	if (unsupported(error)) {
		records = {};
		error = dump_one_by_one(fd, sizes, records);
	}
	if (error != 0)
		throw_errno(env, "bpf(MAP_LOOKUP_BATCH)", error, sizes.info.name);
	Napi::Object result = Napi::Object::New(env);
	result.Set("keys", Napi::Buffer<uint8_t>::Copy(env, records.keys.data(), records.keys.size()));
	result.Set("values", Napi::Buffer<uint8_t>::Copy(env, records.values.data(), records.values.size()));
	result.Set("count", Napi::Number::New(env, records.count));
	return result;
}

static int count_batches(int fd, const Sizes &sizes, uint32_t &count)
{
	Records chunk;
	uint32_t room = std::clamp(sizes.info.max_entries, 1u, 4096u);
	std::vector<uint8_t> token(std::max<size_t>(sizes.key, 8)), next(token.size());
	bool first = true;
	for (;;) {
		chunk.keys.resize(size_t{room} * sizes.key);
		chunk.values.resize(size_t{room} * sizes.value);
		uint32_t got = room;
		bpf_map_batch_opts opts = {};
		opts.sz = sizeof(opts);
		const int rc = bpf_map_lookup_batch(fd, first ? nullptr : token.data(), next.data(), chunk.keys.data(),
						    chunk.values.data(), &got, &opts);
		const int error = errno;
		if (rc < 0 && error == ENOSPC && room < (1u << 24)) { /* a hash bucket larger than the chunk */
			room *= 2;
			continue;
		}
		if (rc < 0 && error != ENOENT)
			return error;
		count += std::min(got, room);
		if (rc < 0)
			return 0;
		first = false;
		token.swap(next);
	}
}

static Napi::Value map_count(const Napi::CallbackInfo &info)
{
	const Napi::Env env = info.Env();
	const int fd = arg_fd(info, 0, "fd");
	const Sizes sizes = sizes_of(env, fd);
	uint32_t count = 0;
	int error = count_batches(fd, sizes, count);
	if (unsupported(error)) {
		Records records;
		error = dump_one_by_one(fd, sizes, records);
		count = records.count;
	}
	if (error != 0)
		throw_errno(env, "bpf(MAP_LOOKUP_BATCH)", error, sizes.info.name);
	return Napi::Number::New(env, count);
}

void init_maps(Napi::Env env, Napi::Object exports)
{
	exports.Set("mapInfo", Napi::Function::New(env, map_info, "mapInfo"));
	exports.Set("mapLookup", Napi::Function::New(env, map_lookup, "mapLookup"));
	exports.Set("mapUpdate", Napi::Function::New(env, map_update, "mapUpdate"));
	exports.Set("mapDelete", Napi::Function::New(env, map_delete, "mapDelete"));
	exports.Set("mapUpdateBatch", Napi::Function::New(env, map_update_batch, "mapUpdateBatch"));
	exports.Set("mapDeleteBatch", Napi::Function::New(env, map_delete_batch, "mapDeleteBatch"));
	exports.Set("mapCount", Napi::Function::New(env, map_count, "mapCount"));
	exports.Set("mapDump", Napi::Function::New(env, map_dump, "mapDump"));
}

} // namespace cs
