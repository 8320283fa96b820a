/* Arguments from JS are checked here, and nowhere trusted: a wrong type is a TypeError, never a crash. */
#include "support.h"

#include <bpf/libbpf.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include <cmath>
#include <cstdarg>

namespace cs {

void throw_errno(Napi::Env env, const char *syscall, int err, const std::string &detail)
{
	const int number = err < 0 ? -err : err;
	const char *name = strerrorname_np(number);
	const std::string code = name != nullptr ? name : number == 524 ? "ENOTSUPP" : "E" + std::to_string(number);
	const char *description = strerrordesc_np(number);
	std::string message = std::string(syscall) + ": " + code;
	if (description != nullptr)
		message += std::string(" (") + description + ")";
	if (!detail.empty())
		message += ": " + detail;
	Napi::Error error = Napi::Error::New(env, message);
	error.Set("code", Napi::String::New(env, code));
	error.Set("errno", Napi::Number::New(env, number));
	error.Set("syscall", Napi::String::New(env, syscall));
	throw error;
}

void throw_type(Napi::Env env, const std::string &message)
{
	throw Napi::TypeError::New(env, message);
}

static Napi::Value arg(const Napi::CallbackInfo &info, size_t index)
{
	return index < info.Length() ? info[index] : info.Env().Undefined();
}

uint32_t as_u32(Napi::Env env, const Napi::Value &value, const std::string &name)
{
	if (value.IsNumber()) {
		const double number = value.As<Napi::Number>().DoubleValue();
		if (number >= 0 && number <= 4294967295.0 && std::trunc(number) == number)
			return static_cast<uint32_t>(number);
	}
	throw_type(env, name + " must be an integer from 0 to 4294967295");
}

std::string as_string(Napi::Env env, const Napi::Value &value, const std::string &name)
{
	if (!value.IsString())
		throw_type(env, name + " must be a string");
	std::string text = value.As<Napi::String>().Utf8Value();
	if (text.find('\0') != std::string::npos)
		throw_type(env, name + " must not contain a zero byte");
	return text;
}

Bytes as_bytes(Napi::Env env, const Napi::Value &value, const std::string &name)
{
	if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array)
		throw_type(env, name + " must be a Uint8Array");
	Napi::Uint8Array array = value.As<Napi::Uint8Array>();
	return {array.Data(), array.ByteLength()};
}

int arg_fd(const Napi::CallbackInfo &info, size_t index, const char *name)
{
	const uint32_t fd = as_u32(info.Env(), arg(info, index), name);
	if (fd > INT32_MAX)
		throw_type(info.Env(), std::string(name) + " must be a file descriptor");
	return static_cast<int>(fd);
}

uint32_t arg_u32(const Napi::CallbackInfo &info, size_t index, const char *name)
{
	return as_u32(info.Env(), arg(info, index), name);
}

uint32_t arg_u32_or(const Napi::CallbackInfo &info, size_t index, const char *name, uint32_t fallback)
{
	const Napi::Value value = arg(info, index);
	return value.IsUndefined() ? fallback : as_u32(info.Env(), value, name);
}

std::string arg_string(const Napi::CallbackInfo &info, size_t index, const char *name)
{
	return as_string(info.Env(), arg(info, index), name);
}

Bytes arg_bytes(const Napi::CallbackInfo &info, size_t index, const char *name)
{
	return as_bytes(info.Env(), arg(info, index), name);
}

Napi::Function arg_function(const Napi::CallbackInfo &info, size_t index, const char *name)
{
	const Napi::Value value = arg(info, index);
	if (!value.IsFunction())
		throw_type(info.Env(), std::string(name) + " must be a function");
	return value.As<Napi::Function>();
}

Napi::Object arg_object(const Napi::CallbackInfo &info, size_t index, const char *name)
{
	const Napi::Value value = arg(info, index);
	if (!value.IsObject())
		throw_type(info.Env(), std::string(name) + " must be an object");
	return value.As<Napi::Object>();
}

std::optional<uint32_t> prop_u32(const Napi::Object &object, const char *name)
{
	const Napi::Value value = object.Get(name);
	if (value.IsUndefined())
		return std::nullopt;
	return as_u32(object.Env(), value, name);
}

std::optional<Napi::Object> prop_object(const Napi::Object &object, const char *name)
{
	const Napi::Value value = object.Get(name);
	if (value.IsUndefined())
		return std::nullopt;
	if (!value.IsObject())
		throw_type(object.Env(), std::string(name) + " must be an object");
	return value.As<Napi::Object>();
}

int dup_fd(Napi::Env env, int fd)
{
	const int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (copy < 0)
		throw_errno(env, "fcntl", errno);
	return copy;
}

Fd::~Fd()
{
	if (fd_ >= 0)
		close(fd_);
}

int Fd::release()
{
	const int fd = fd_;
	fd_ = -1;
	return fd;
}

static thread_local std::string log_text;
static constexpr size_t log_limit = 4096;

static int log_print(enum libbpf_print_level level, const char *format, va_list args)
{
	if (level != LIBBPF_WARN)
		return 0;
	char *line = nullptr;
	const int length = vasprintf(&line, format, args);
	if (length < 0)
		return 0;
	log_text.append(line, static_cast<size_t>(length));
	free(line);
	if (log_text.size() > log_limit)
		log_text.erase(0, log_text.size() - log_limit);
	return 0;
}

void libbpf_log_install()
{
	libbpf_set_strict_mode(LIBBPF_STRICT_ALL);
	libbpf_set_print(log_print);
}

void libbpf_log_clear()
{
	log_text.clear();
}

std::string libbpf_log_tail()
{
	std::string text = log_text;
	while (!text.empty() && text.back() == '\n')
		text.pop_back();
	return text;
}

} // namespace cs
