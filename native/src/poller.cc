/* Lifetimes around uv_poll: closing within a callback, closing twice, and an environment that ends first. */
#include "poller.h"

#include <errno.h>

namespace cs {

Poller::Poller(Napi::Env env, const char *name, Napi::Function callback, std::function<void(Poller &)> on_readable,
	       std::function<void()> on_free)
    : env_(env), callback_(Napi::Persistent(callback)), context_(std::make_unique<Napi::AsyncContext>(env, name)), on_readable_(std::move(on_readable)),
      on_free_(std::move(on_free))
{
}

std::shared_ptr<Poller> Poller::start(Napi::Env env, int fd, const char *name, Napi::Function callback,
				      std::function<void(Poller &)> on_readable, std::function<void()> on_free)
{
	uv_loop_t *loop = nullptr;
	if (napi_get_uv_event_loop(env, &loop) != napi_ok)
		throw_errno(env, "napi_get_uv_event_loop", EINVAL);
	std::shared_ptr<Poller> poller(new Poller(env, name, callback, std::move(on_readable), nullptr));
	if (const int rc = uv_poll_init(loop, &poller->poll_, fd); rc < 0)
		throw_errno(env, "uv_poll_init", rc);
	poller->poll_.data = poller.get();
	poller->self_ = poller;
	poller->on_free_ = std::move(on_free);
	napi_add_async_cleanup_hook(env, on_env_teardown, poller.get(), &poller->hook_);
	if (const int rc = uv_poll_start(&poller->poll_, UV_READABLE, on_poll); rc < 0) {
		poller->on_free_ = nullptr; /* still the caller's */
		poller->close();
		throw_errno(env, "uv_poll_start", rc);
	}
	return poller;
}

void Poller::close()
{
	if (closed_)
		return;
	closed_ = true;
	uv_close(reinterpret_cast<uv_handle_t *>(&poll_), on_uv_closed);
}

void Poller::on_poll(uv_poll_t *poll, int status, int)
{
	const std::shared_ptr<Poller> poller = static_cast<Poller *>(poll->data)->shared_from_this();
	if (poller->closed_)
		return;
	const Napi::HandleScope scope(poller->env_);
	const Napi::CallbackScope callback_scope(poller->env_, *poller->context_);
	poller->on_readable_(*poller);
	/* On an error (a netlink queue that ran over) uv stops watching; the read has taken the error off the socket. */
	if (status < 0 && !poller->closed_ && uv_poll_start(&poller->poll_, UV_READABLE, on_poll) < 0)
		poller->close();
}

void Poller::deliver(const uint8_t *data, size_t size)
{
	const Napi::HandleScope scope(env_);
	try {
		callback_.Call({Napi::Buffer<uint8_t>::Copy(env_, data, size)});
	} catch (const Napi::Error &error) {
		napi_fatal_exception(env_, error.Value());
	}
}

void Poller::on_uv_closed(uv_handle_t *poll)
{
	Poller *poller = static_cast<Poller *>(poll->data);
	if (poller->on_free_)
		poller->on_free_();
	poller->on_free_ = nullptr;
	if (poller->hook_ != nullptr)
		napi_remove_async_cleanup_hook(poller->hook_);
	const Napi::HandleScope scope(poller->env_);
	poller->callback_.Reset();
	poller->context_.reset();
	poller->on_readable_ = nullptr;
	poller->self_.reset(); /* may be the last reference */
}

void Poller::on_env_teardown(napi_async_cleanup_hook_handle, void *data)
{
	static_cast<Poller *>(data)->close();
}

Napi::Object Poller::handle()
{
	Napi::Object object = Napi::Object::New(env_);
	object.Set("close", Napi::Function::New(
				    env_, [poller = shared_from_this()](const Napi::CallbackInfo &) { poller->close(); }, "close"));
	return object;
}

} // namespace cs
