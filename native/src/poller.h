/* A descriptor watched on the event loop, and the JS function that is told. Ring buffer, TUN and netlink stand on it. */
#pragma once

#include "support.h"

#include <uv.h>

#include <functional>
#include <memory>

namespace cs {

class Poller : public std::enable_shared_from_this<Poller> {
      public:
	/* `on_readable` runs on the loop, within a callback scope: it calls deliver() for each item and returns when `closed()`;
	 * on an error that will not go away it calls close(), or it is called again and again.
	 * `on_free` runs once, when neither the loop nor a running `on_readable` can touch the resource any more. */
	static std::shared_ptr<Poller> start(Napi::Env env, int fd, const char *name, Napi::Function callback,
					     std::function<void(Poller &)> on_readable, std::function<void()> on_free);

	/* Stops at once; may be called from within the callback, and twice. */
	void close();
	bool closed() const { return closed_; }
	/* One call of the JS function. What it throws is an uncaught exception, as in any event handler of Node. */
	void deliver(const uint8_t *data, size_t size);
	/* { close() } for JS. */
	Napi::Object handle();

      private:
	Poller(Napi::Env env, const char *name, Napi::Function callback, std::function<void(Poller &)> on_readable,
	       std::function<void()> on_free);
	static void on_poll(uv_poll_t *poll, int status, int events);
	static void on_uv_closed(uv_handle_t *poll);
	static void on_env_teardown(napi_async_cleanup_hook_handle hook, void *data);

	Napi::Env env_;
	Napi::FunctionReference callback_;
	std::unique_ptr<Napi::AsyncContext> context_;
	std::function<void(Poller &)> on_readable_;
	std::function<void()> on_free_;
	uv_poll_t poll_ = {};
	napi_async_cleanup_hook_handle hook_ = nullptr;
	std::shared_ptr<Poller> self_; /* the loop's own reference, until uv has let go */
	bool closed_ = false;
};

} // namespace cs
