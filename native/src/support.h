/* What every file of the addon needs: arguments checked before use, errors with code, errno and syscall. */
#pragma once

#include <napi.h>

#include <cstdint>
#include <optional>
#include <span>
#include <string>

namespace cs {

using Bytes = std::span<uint8_t>;

/* Throws a JS Error with `code` ("EPERM"), `errno` (positive) and `syscall`. `err` may have either sign. */
[[noreturn]] void throw_errno(Napi::Env env, const char *syscall, int err, const std::string &detail = "");
[[noreturn]] void throw_type(Napi::Env env, const std::string &message);

int arg_fd(const Napi::CallbackInfo &info, size_t index, const char *name);
uint32_t arg_u32(const Napi::CallbackInfo &info, size_t index, const char *name);
uint32_t arg_u32_or(const Napi::CallbackInfo &info, size_t index, const char *name, uint32_t fallback);
std::string arg_string(const Napi::CallbackInfo &info, size_t index, const char *name);
Bytes arg_bytes(const Napi::CallbackInfo &info, size_t index, const char *name);
Napi::Function arg_function(const Napi::CallbackInfo &info, size_t index, const char *name);
Napi::Object arg_object(const Napi::CallbackInfo &info, size_t index, const char *name);

uint32_t as_u32(Napi::Env env, const Napi::Value &value, const std::string &name);
std::string as_string(Napi::Env env, const Napi::Value &value, const std::string &name);
Bytes as_bytes(Napi::Env env, const Napi::Value &value, const std::string &name);
std::optional<uint32_t> prop_u32(const Napi::Object &object, const char *name);
std::optional<Napi::Object> prop_object(const Napi::Object &object, const char *name);

/* A copy of the fd that the caller owns; throws when there is none left. */
int dup_fd(Napi::Env env, int fd);

/* A descriptor that closes itself unless released. */
class Fd {
      public:
	explicit Fd(int fd) : fd_(fd) {}
	Fd(Fd &&other) noexcept : fd_(other.release()) {}
	Fd(const Fd &) = delete;
	Fd &operator=(const Fd &) = delete;
	~Fd();
	int get() const { return fd_; }
	int release();

      private:
	int fd_;
};

/* libbpf's warnings since the last call of libbpf_log_clear, bounded to the tail. */
void libbpf_log_install();
void libbpf_log_clear();
std::string libbpf_log_tail();

void init_bpf(Napi::Env env, Napi::Object exports);
void init_btf(Napi::Env env, Napi::Object exports);
void init_maps(Napi::Env env, Napi::Object exports);
void init_quiesce(Napi::Env env, Napi::Object exports);
void init_ringbuf(Napi::Env env, Napi::Object exports);
void init_links(Napi::Env env, Napi::Object exports);
void init_inspect(Napi::Env env, Napi::Object exports);
void init_netlink(Napi::Env env, Napi::Object exports);
void init_tun(Napi::Env env, Napi::Object exports);
void init_process(Napi::Env env, Napi::Object exports);

} // namespace cs
