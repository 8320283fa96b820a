/* The hold device: packets read are delivered on the event loop, packets written come in again as if from the wire. */
#include "poller.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

namespace cs {

static constexpr int packets_per_turn = 256;
static constexpr size_t packet_limit = 65535 + 64;

struct TunDevice {
	int fd = -1;
	std::shared_ptr<Poller> poller;
	std::array<uint8_t, packet_limit> buffer;

	void close()
	{
		if (fd >= 0) {
			if (poller)
				poller->close(); /* stops watching before the descriptor goes */
			::close(fd);
		}
		fd = -1;
	}
	~TunDevice()
	{
		if (fd >= 0)
			::close(fd);
	}
};

static void read_packets(TunDevice &device, Poller &poller)
{
	for (int i = 0; i < packets_per_turn && device.fd >= 0; i++) {
		const ssize_t size = read(device.fd, device.buffer.data(), device.buffer.size());
		if (size < 0) {
			if (errno != EAGAIN && errno != EINTR)
				poller.close(); /* the device was deleted */
			return;
		}
		poller.deliver(device.buffer.data(), static_cast<size_t>(size));
	}
}

static Napi::Value write_packet(const Napi::CallbackInfo &info, TunDevice &device)
{
	const Napi::Env env = info.Env();
	const Bytes packet = arg_bytes(info, 0, "packet");
	if (device.fd < 0)
		throw_errno(env, "write", EBADF, "the TUN device is closed");
	if (packet.empty())
		throw_type(env, "packet must not be empty");
	if (write(device.fd, packet.data(), packet.size()) < 0) {
		if (errno == EAGAIN)
			return Napi::Boolean::New(env, false);
		throw_errno(env, "write", errno, "TUN");
	}
	return Napi::Boolean::New(env, true);
}

static Napi::Value tun_open(const Napi::CallbackInfo &info)
{
	const Napi::Env env = info.Env();
	const std::string name = arg_string(info, 0, "name");
	const Napi::Function callback = arg_function(info, 1, "onPacket");
	if (name.empty() || name.size() >= IFNAMSIZ || name.find('%') != std::string::npos)
		throw_type(env, "name must have 1 to 15 characters, without %");

	Fd fd(open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC));
	if (fd.get() < 0)
		throw_errno(env, "open", errno, "/dev/net/tun");
	ifreq request = {};
	memcpy(request.ifr_name, name.c_str(), name.size());
	request.ifr_flags = static_cast<short>(IFF_TUN | IFF_NO_PI | IFF_TUN_EXCL);
	if (ioctl(fd.get(), TUNSETIFF, &request) < 0)
		throw_errno(env, "ioctl(TUNSETIFF)", errno, name);
	const uint32_t index = if_nametoindex(request.ifr_name);
	if (index == 0)
		throw_errno(env, "if_nametoindex", errno, name);

	const auto device = std::make_shared<TunDevice>();
	device->poller = Poller::start(
		env, fd.get(), "countersign:tun", callback, [device](Poller &poller) { read_packets(*device, poller); },
		[device] { device->close(); });
	device->fd = fd.release();

	Napi::Object handle = Napi::Object::New(env);
	handle.Set("fd", Napi::Number::New(env, device->fd));
	handle.Set("name", name);
	handle.Set("ifindex", Napi::Number::New(env, index));
	handle.Set("close", Napi::Function::New(env, [device](const Napi::CallbackInfo &) { device->close(); }, "close"));
	handle.Set("write", Napi::Function::New(
				    env, [device](const Napi::CallbackInfo &info) { return write_packet(info, *device); }, "write"));
	return handle;
}

static Napi::Value if_index(const Napi::CallbackInfo &info)
{
	const std::string name = arg_string(info, 0, "name");
	const uint32_t index = if_nametoindex(name.c_str());
	if (index == 0)
		throw_errno(info.Env(), "if_nametoindex", errno, name);
	return Napi::Number::New(info.Env(), index);
}

static Napi::Value if_name(const Napi::CallbackInfo &info)
{
	char name[IF_NAMESIZE] = {};
	if (if_indextoname(arg_u32(info, 0, "ifindex"), name) == nullptr) {
		if (errno == ENXIO)
			return info.Env().Undefined();
		throw_errno(info.Env(), "if_indextoname", errno);
	}
	return Napi::String::New(info.Env(), name);
}

void init_tun(Napi::Env env, Napi::Object exports)
{
	exports.Set("tunOpen", Napi::Function::New(env, tun_open, "tunOpen"));
	exports.Set("ifIndex", Napi::Function::New(env, if_index, "ifIndex"));
	exports.Set("ifName", Napi::Function::New(env, if_name, "ifName"));
}

} // namespace cs
