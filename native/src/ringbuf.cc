/* The ring buffer: the kernel's signals, on the event loop. */
#include "poller.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>

namespace cs {

/* A turn of the loop takes at most this many records, so that a flood of signals cannot starve timers and sockets. */
static constexpr int records_per_turn = 512;

struct Ring {
	ring_buffer *buffer = nullptr;
	Poller *poller = nullptr; /* set while consuming */
	int left = 0;
	~Ring() { ring_buffer__free(buffer); }
};

static int on_record(void *context, void *data, size_t size)
{
	Ring *ring = static_cast<Ring *>(context);
	ring->poller->deliver(static_cast<const uint8_t *>(data), size);
	return ring->poller->closed() || --ring->left == 0 ? -ECANCELED : 0; /* this record counts as consumed */
}

static Napi::Value ringbuf_open(const Napi::CallbackInfo &info)
{
	const Napi::Env env = info.Env();
	const int fd = arg_fd(info, 0, "fd");
	const Napi::Function callback = arg_function(info, 1, "onRecord");
	auto ring = std::make_shared<Ring>();
	libbpf_log_clear();
	ring->buffer = ring_buffer__new(fd, on_record, ring.get(), nullptr);
	if (ring->buffer == nullptr)
		throw_errno(env, "ring_buffer__new", errno, libbpf_log_tail());
	const auto poller = Poller::start(
		env, ring_buffer__epoll_fd(ring->buffer), "countersign:ringbuf", callback,
		[ring](Poller &self) {
			ring->poller = &self;
			ring->left = records_per_turn;
			ring_buffer__consume(ring->buffer);
			ring->poller = nullptr;
		},
		nullptr);
	return poller->handle();
}

void init_ringbuf(Napi::Env env, Napi::Object exports)
{
	exports.Set("ringbufOpen", Napi::Function::New(env, ringbuf_open, "ringbufOpen"));
}

} // namespace cs
