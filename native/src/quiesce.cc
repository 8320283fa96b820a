/* Has every program ended that began before now? The wait is the kernel's: an RCU grace period, on a thread of libuv's pool. */
#include "support.h"

#include <bpf/bpf.h>
#include <errno.h>

#include <mutex>

namespace cs {

/* An update of a map of maps returns only when no program runs any more that could have read the value of before (since Linux
 * 4.20: kernel/bpf/syscall.c, maybe_wait_bpf_programs). membarrier(MEMBARRIER_CMD_GLOBAL) waits for the same, but not on a
 * machine of one CPU, and with nohz_full it refuses. */
class Grace {
      public:
	/* Negative errno. */
	int wait()
	{
		const std::lock_guard<std::mutex> guard(mutex_);
		if (outer_ < 0) {
			const int rc = create();
			if (rc < 0)
				return rc;
		}
		const uint32_t key = 0;
		return bpf_map_update_elem(outer_, &key, &inner_, BPF_ANY) < 0 ? -errno : 0;
	}

      private:
	int create()
	{
		Fd inner(bpf_map_create(BPF_MAP_TYPE_ARRAY, "cs_quiesce_in", sizeof(uint32_t), sizeof(uint32_t), 1, nullptr));
		if (inner.get() < 0)
			return -errno;
		LIBBPF_OPTS(bpf_map_create_opts, options, .inner_map_fd = static_cast<uint32_t>(inner.get()));
		Fd outer(bpf_map_create(BPF_MAP_TYPE_ARRAY_OF_MAPS, "cs_quiesce", sizeof(uint32_t), sizeof(uint32_t), 1, &options));
		if (outer.get() < 0)
			return -errno;
		inner_ = inner.release();
		outer_ = outer.release();
		return 0;
	}

	std::mutex mutex_;
	int inner_ = -1;
	int outer_ = -1; /* for the life of the process: the kernel frees them with it */
};

static Grace grace;

class Quiesce : public Napi::AsyncWorker {
      public:
	explicit Quiesce(Napi::Env env) : Napi::AsyncWorker(env, "countersign:quiesce"), deferred_(env) {}
	Napi::Promise promise() const { return deferred_.Promise(); }

      protected:
	void Execute() override { rc_ = grace.wait(); }
	void OnOK() override
	{
		if (rc_ == 0) {
			deferred_.Resolve(Env().Undefined());
			return;
		}
		try {
			throw_errno(Env(), "bpf(BPF_MAP_UPDATE_ELEM)", rc_, "waiting for programs that run");
		} catch (const Napi::Error &error) {
			deferred_.Reject(error.Value());
		}
	}

      private:
	Napi::Promise::Deferred deferred_;
	int rc_ = 0;
};

static Napi::Value quiesce(const Napi::CallbackInfo &info)
{
	Quiesce *worker = new Quiesce(info.Env()); /* deletes itself */
	const Napi::Promise promise = worker->promise();
	worker->Queue();
	return promise;
}

void init_quiesce(Napi::Env env, Napi::Object exports)
{
	exports.Set("quiesce", Napi::Function::New(env, quiesce, "quiesce"));
}

} // namespace cs
