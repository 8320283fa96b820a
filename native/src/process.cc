/* Processes, namespaces and clocks: who is on the other end of a socket, is it still there, in which netns are we. */
#include "support.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

namespace cs {

static Napi::Value peer_credentials(const Napi::CallbackInfo &info)
{
	const Napi::Env env = info.Env();
	ucred credentials = {};
	socklen_t length = sizeof(credentials);
	if (getsockopt(arg_fd(info, 0, "fd"), SOL_SOCKET, SO_PEERCRED, &credentials, &length) < 0)
		throw_errno(env, "getsockopt(SO_PEERCRED)", errno);
	/* A socket that is no unix socket answers with pid 0 and no user at all: that must not be read as somebody. */
	if (credentials.pid == 0 || credentials.uid == static_cast<uid_t>(-1))
		throw_errno(env, "getsockopt(SO_PEERCRED)", ENOTCONN, "no process is known behind the socket");
	Napi::Object result = Napi::Object::New(env);
	result.Set("pid", Napi::Number::New(env, credentials.pid));
	result.Set("uid", Napi::Number::New(env, credentials.uid));
	result.Set("gid", Napi::Number::New(env, credentials.gid));
	return result;
}

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77 /* Linux 6.5 */
#endif

static Napi::Value peer_pidfd(const Napi::CallbackInfo &info)
{
	int pidfd = -1;
	socklen_t length = sizeof(pidfd);
	if (getsockopt(arg_fd(info, 0, "fd"), SOL_SOCKET, SO_PEERPIDFD, &pidfd, &length) < 0)
		throw_errno(info.Env(), "getsockopt(SO_PEERPIDFD)", errno);
	return Napi::Number::New(info.Env(), pidfd); /* close-on-exec always */
}

static Napi::Value pidfd_open(const Napi::CallbackInfo &info)
{
	const int pid = arg_fd(info, 0, "pid");
	const int fd = static_cast<int>(syscall(SYS_pidfd_open, pid, 0)); /* close-on-exec always */
	if (fd < 0)
		throw_errno(info.Env(), "pidfd_open", errno);
	return Napi::Number::New(info.Env(), fd);
}

static Napi::Value pidfd_alive(const Napi::CallbackInfo &info)
{
	pollfd watched = {arg_fd(info, 0, "fd"), POLLIN, 0};
	const int rc = poll(&watched, 1, 0);
	if (rc < 0)
		throw_errno(info.Env(), "poll", errno);
	if (watched.revents & POLLNVAL)
		throw_errno(info.Env(), "poll", EBADF);
	return Napi::Boolean::New(info.Env(), rc == 0);
}

static Napi::Value with_netns(const Napi::CallbackInfo &info)
{
	const Napi::Env env = info.Env();
	const std::string path = arg_string(info, 0, "path");
	const Napi::Function fn = arg_function(info, 1, "fn");
	const Fd home(open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC));
	if (home.get() < 0)
		throw_errno(env, "open", errno, "/proc/thread-self/ns/net");
	const Fd target(open(path.c_str(), O_RDONLY | O_CLOEXEC));
	if (target.get() < 0)
		throw_errno(env, "open", errno, path);
	if (setns(target.get(), CLONE_NEWNET) < 0)
		throw_errno(env, "setns", errno, path);

	struct Return {
		int fd;
		~Return()
		{
			/* To go on in the wrong namespace would attach, route and listen where nobody expects it. */
			if (setns(fd, CLONE_NEWNET) < 0)
				Napi::Error::Fatal("withNetns", "cannot return to the own network namespace");
		}
	};
	Napi::Value result;
	{
		const Return back{home.get()};
		result = fn.Call({});
	}
	if (result.IsPromise())
		throw_type(env, "fn must be synchronous: what it awaits would run outside of the namespace");
	return result;
}

static Napi::Value try_lock(const Napi::CallbackInfo &info)
{
	if (flock(arg_fd(info, 0, "fd"), LOCK_EX | LOCK_NB) == 0)
		return Napi::Boolean::New(info.Env(), true);
	if (errno != EWOULDBLOCK)
		throw_errno(info.Env(), "flock", errno);
	return Napi::Boolean::New(info.Env(), false);
}

static Napi::Value boot_time_ns(const Napi::CallbackInfo &info)
{
	timespec now = {};
	if (clock_gettime(CLOCK_BOOTTIME, &now) < 0)
		throw_errno(info.Env(), "clock_gettime", errno);
	return Napi::BigInt::New(info.Env(), static_cast<uint64_t>(now.tv_sec) * 1000000000u + static_cast<uint64_t>(now.tv_nsec));
}

static void set_parent_death_signal(const Napi::CallbackInfo &info)
{
	const uint32_t signal = arg_u32(info, 0, "signal");
	if (prctl(PR_SET_PDEATHSIG, static_cast<unsigned long>(signal), 0, 0, 0) < 0)
		throw_errno(info.Env(), "prctl(PR_SET_PDEATHSIG)", errno);
}

static void close_fd(const Napi::CallbackInfo &info)
{
	const int fd = arg_fd(info, 0, "fd");
	if (fd <= STDERR_FILENO)
		throw_type(info.Env(), "the standard streams are not closed here");
	if (close(fd) < 0 && errno != EINTR)
		throw_errno(info.Env(), "close", errno);
}

void init_process(Napi::Env env, Napi::Object exports)
{
	exports.Set("peerCredentials", Napi::Function::New(env, peer_credentials, "peerCredentials"));
	exports.Set("peerPidfd", Napi::Function::New(env, peer_pidfd, "peerPidfd"));
	exports.Set("pidfdOpen", Napi::Function::New(env, pidfd_open, "pidfdOpen"));
	exports.Set("pidfdAlive", Napi::Function::New(env, pidfd_alive, "pidfdAlive"));
	exports.Set("withNetns", Napi::Function::New(env, with_netns, "withNetns"));
	exports.Set("tryLock", Napi::Function::New(env, try_lock, "tryLock"));
	exports.Set("bootTimeNs", Napi::Function::New(env, boot_time_ns, "bootTimeNs"));
	exports.Set("setParentDeathSignal", Napi::Function::New(env, set_parent_death_signal, "setParentDeathSignal"));
	exports.Set("closeFd", Napi::Function::New(env, close_fd, "closeFd"));
}

} // namespace cs
