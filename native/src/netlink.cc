/* Netlink sockets: one request with its whole answer, and subscriptions. What the messages say is TypeScript's matter. */
#include "poller.h"

#include <errno.h>
#include <linux/netlink.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <vector>

#ifndef SOL_NETLINK
#define SOL_NETLINK 270
#endif

namespace cs {

static constexpr time_t receive_timeout_s = 5;
static constexpr size_t answer_limit = 256u << 20;

static int netlink_socket(Napi::Env env, uint32_t protocol, uint32_t groups)
{
	if (protocol >= 32)
		throw_type(env, "protocol must be less than 32");
	Fd fd(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | (groups != 0 ? SOCK_NONBLOCK : 0), static_cast<int>(protocol)));
	if (fd.get() < 0)
		throw_errno(env, "socket(AF_NETLINK)", errno);
	const int on = 1;
	const timeval timeout = {receive_timeout_s, 0};
	setsockopt(fd.get(), SOL_NETLINK, NETLINK_EXT_ACK, &on, sizeof(on));
	setsockopt(fd.get(), SOL_NETLINK, NETLINK_CAP_ACK, &on, sizeof(on));
	setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
	sockaddr_nl address = {};
	address.nl_family = AF_NETLINK;
	address.nl_groups = groups;
	if (bind(fd.get(), reinterpret_cast<sockaddr *>(&address), sizeof(address)) < 0)
		throw_errno(env, "bind(AF_NETLINK)", errno);
	return fd.release();
}

/* One datagram from the kernel (port 0), in full; a negative errno otherwise. */
static int receive(int fd, std::vector<uint8_t> &buffer)
{
	const ssize_t size = recv(fd, nullptr, 0, MSG_PEEK | MSG_TRUNC);
	if (size < 0)
		return -errno;
	buffer.resize(static_cast<size_t>(size) + 1);
	sockaddr_nl from = {};
	socklen_t length = sizeof(from);
	const ssize_t got = recvfrom(fd, buffer.data(), buffer.size(), 0, reinterpret_cast<sockaddr *>(&from), &length);
	if (got < 0)
		return -errno;
	buffer.resize(from.nl_pid == 0 ? static_cast<size_t>(got) : 0); /* other processes may write to us; they are not heard */
	return 0;
}

/* NLMSGERR_ATTR_MSG of an error message, if the kernel gave a reason in words. */
static std::string extended_error(const nlmsghdr *header)
{
	const auto *error = static_cast<const nlmsgerr *>(NLMSG_DATA(header));
	if (!(header->nlmsg_flags & NLM_F_ACK_TLVS))
		return "";
	size_t offset = NLMSG_HDRLEN + NLMSG_ALIGN(sizeof(nlmsgerr));
	if (!(header->nlmsg_flags & NLM_F_CAPPED) && error->msg.nlmsg_len >= sizeof(nlmsghdr))
		offset += NLMSG_ALIGN(error->msg.nlmsg_len - sizeof(nlmsghdr));
	const auto *bytes = reinterpret_cast<const uint8_t *>(header);
	while (offset + sizeof(nlattr) <= header->nlmsg_len) {
		nlattr attribute;
		memcpy(&attribute, bytes + offset, sizeof(attribute));
		if (attribute.nla_len < sizeof(nlattr) || offset + attribute.nla_len > header->nlmsg_len)
			break;
		if ((attribute.nla_type & NLA_TYPE_MASK) == NLMSGERR_ATTR_MSG) {
			const auto *text = reinterpret_cast<const char *>(bytes + offset + sizeof(nlattr));
			return std::string(text, strnlen(text, attribute.nla_len - sizeof(nlattr)));
		}
		offset += NLMSG_ALIGN(attribute.nla_len);
	}
	return "";
}

static Napi::Value netlink_request(const Napi::CallbackInfo &info)
{
	const Napi::Env env = info.Env();
	const uint32_t protocol = arg_u32(info, 0, "protocol");
	const Bytes request = arg_bytes(info, 1, "request");
	nlmsghdr sent;
	if (request.size() < sizeof(sent))
		throw_type(env, "request must have at least a netlink header");
	memcpy(&sent, request.data(), sizeof(sent));
	if (sent.nlmsg_len != request.size())
		throw_type(env, "request must be one netlink message whose length field says its length");

	const Fd fd(netlink_socket(env, protocol, 0));
	sockaddr_nl kernel = {};
	kernel.nl_family = AF_NETLINK;
	if (sendto(fd.get(), request.data(), request.size(), 0, reinterpret_cast<sockaddr *>(&kernel), sizeof(kernel)) < 0)
		throw_errno(env, "sendto(AF_NETLINK)", errno);

	std::vector<uint8_t> answer, datagram;
	for (bool whole = false; !whole;) {
		const int rc = receive(fd.get(), datagram);
		if (rc == -EINTR)
			continue;
		if (rc < 0)
			throw_errno(env, "recv(AF_NETLINK)", rc == -EAGAIN ? ETIMEDOUT : rc);
		for (size_t offset = 0; offset + sizeof(nlmsghdr) <= datagram.size();) {
			const auto *header = reinterpret_cast<const nlmsghdr *>(datagram.data() + offset);
			if (header->nlmsg_len < sizeof(nlmsghdr) || header->nlmsg_len > datagram.size() - offset)
				throw_errno(env, "recv(AF_NETLINK)", EBADMSG);
			offset += NLMSG_ALIGN(header->nlmsg_len);
			if (header->nlmsg_seq != sent.nlmsg_seq)
				continue;
			int32_t status = 0;
			if (header->nlmsg_type == NLMSG_ERROR || header->nlmsg_type == NLMSG_DONE) {
				if (header->nlmsg_len >= NLMSG_LENGTH(sizeof(status)))
					memcpy(&status, NLMSG_DATA(header), sizeof(status));
				if (status < 0)
					throw_errno(env, "netlink", status,
						    header->nlmsg_type == NLMSG_ERROR && header->nlmsg_len >= NLMSG_LENGTH(sizeof(nlmsgerr))
							    ? extended_error(header)
							    : "");
				whole = true;
			} else if (!(header->nlmsg_flags & NLM_F_MULTI) && !(sent.nlmsg_flags & NLM_F_ACK)) {
				whole = true;
			}
			/* The table changed while it was read: the caller asks again. */
			if (header->nlmsg_flags & NLM_F_DUMP_INTR)
				throw_errno(env, "netlink", EAGAIN, "the dump was interrupted by a change");
			const auto *bytes = reinterpret_cast<const uint8_t *>(header);
			answer.insert(answer.end(), bytes, bytes + header->nlmsg_len);
			answer.resize(NLMSG_ALIGN(answer.size()));
			if (answer.size() > answer_limit)
				throw_errno(env, "recv(AF_NETLINK)", EMSGSIZE);
		}
	}
	return Napi::Buffer<uint8_t>::Copy(env, answer.data(), answer.size());
}

static void read_messages(int fd, Poller &poller)
{
	std::vector<uint8_t> datagram;
	for (int i = 0; i < 256 && !poller.closed(); i++) {
		const int rc = receive(fd, datagram);
		if (rc == -EAGAIN || rc == -EINTR)
			return;
		if (rc == -ENOBUFS) { /* messages were lost: the standard message for that, so that the reader can ask anew */
			nlmsghdr overrun = {};
			overrun.nlmsg_len = sizeof(overrun);
			overrun.nlmsg_type = NLMSG_OVERRUN;
			poller.deliver(reinterpret_cast<const uint8_t *>(&overrun), sizeof(overrun));
		} else if (rc < 0) {
			poller.close();
		} else if (!datagram.empty()) {
			poller.deliver(datagram.data(), datagram.size());
		}
	}
}

static Napi::Value netlink_subscribe(const Napi::CallbackInfo &info)
{
	const Napi::Env env = info.Env();
	const uint32_t protocol = arg_u32(info, 0, "protocol");
	const uint32_t groups = arg_u32(info, 1, "groups");
	const Napi::Function callback = arg_function(info, 2, "onMessage");
	if (groups == 0)
		throw_type(env, "groups must not be zero");
	Fd fd(netlink_socket(env, protocol, groups));
	const int number = fd.get();
	const auto poller = Poller::start(
		env, number, "countersign:netlink", callback, [number](Poller &self) { read_messages(number, self); },
		[number] { close(number); });
	fd.release();
	return poller->handle();
}

void init_netlink(Napi::Env env, Napi::Object exports)
{
	exports.Set("netlinkRequest", Napi::Function::New(env, netlink_request, "netlinkRequest"));
	exports.Set("netlinkSubscribe", Napi::Function::New(env, netlink_subscribe, "netlinkSubscribe"));
}

} // namespace cs
