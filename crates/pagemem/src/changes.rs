//! Waiting for tracees to change state, in several threads that each trace some.
//!
//! The kernel tells a tracer of a stop by SIGCHLD, and tells the process, not the thread. So whoever takes note of one tells
//! those other threads that may be meant: a signal of their own wakes them where they wait, and stays pending until they
//! do. That takes no descriptor and is never lost: both signals are blocked but for the length of a wait.

use std::cell::OnceCell;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use crate::sys::check;
use crate::turns;

/// Wakes a thread from its wait.
const WAKE: i32 = libc::SIGUSR1;

/// A thread that traces others.
#[derive(Debug)]
struct Listener {
    tid: i32,
    /// In the midst of a stop: what has changed concerns it, as likely as not.
    stopping: AtomicBool,
    /// Tracees between stops.
    held: Mutex<Vec<i32>>,
}

static LISTENERS: Mutex<Vec<Arc<Listener>>> = Mutex::new(Vec::new());
/// How many listeners have tracees between stops, and the thread that waits for changes of those.
static HOLDING: AtomicUsize = AtomicUsize::new(0);
static WATCHER: AtomicI32 = AtomicI32::new(0);

thread_local! {
    static ME: OnceCell<Arc<Listener>> = const { OnceCell::new() };
}

/// Locks, also where a thread has ended by a fault while it held the lock.
pub fn lock<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The calling thread's id.
pub fn own_tid() -> i32 {
    // SAFETY: no pointers.
    unsafe { libc::gettid() }
}

fn set_of(signals: &[i32]) -> libc::sigset_t {
    // SAFETY: a live signal set; an emptied one is valid, and the signals are.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for &signal in signals {
            libc::sigaddset(&mut set, signal);
        }
        set
    }
}

/// Has stops of tracees wait until they are asked for: in this thread, and in those that it begins.
pub fn block() {
    extern "C" fn nothing(_: i32) {}
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        // SAFETY: a live action of the right type, whose handler does nothing; the other fields may be zero.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = nothing as extern "C" fn(i32) as usize;
            libc::sigaction(WAKE, &action, std::ptr::null_mut());
        }
    });
    let set = set_of(&[libc::SIGCHLD, WAKE]);
    // SAFETY: a live signal set; only this thread's mask changes.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) };
}

/// Wakes thread `tid` of this process, if it is there, from its wait or from its next.
pub fn wake(tid: i32) {
    // SAFETY: no pointers. The number is a thread's of ours, or of nobody's.
    unsafe { libc::syscall(libc::SYS_tgkill, std::process::id(), tid, WAKE) };
}

/// Makes the calling thread one that waits for changes on behalf of those that hold tracees between stops.
pub fn watch() {
    block();
    WATCHER.store(own_tid(), Ordering::SeqCst);
}

/// A thread's part in this; it ends with the value.
#[derive(Debug)]
pub struct Listening(Arc<Listener>);

impl Listening {
    /// Begins to tell the calling thread of changes.
    pub fn begin() -> Self {
        block();
        let me = Arc::new(Listener {
            tid: own_tid(),
            stopping: AtomicBool::new(false),
            held: Mutex::default(),
        });
        lock(&LISTENERS).push(Arc::clone(&me));
        ME.with(|m| drop(m.set(Arc::clone(&me))));
        Self(me)
    }

    /// States which threads this one holds between stops. What changes from here on wakes it: so they are to be looked at
    /// after this, and before it waits.
    pub fn hold(&self, tids: Vec<i32>) {
        let (before, now) = {
            let mut held = lock(&self.0.held);
            let before = std::mem::replace(&mut *held, tids);
            (before.is_empty(), held.is_empty())
        };
        if before && !now {
            HOLDING.fetch_add(1, Ordering::SeqCst);
            wake(WATCHER.load(Ordering::SeqCst));
        } else if !before && now {
            HOLDING.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.hold(Vec::new());
        lock(&LISTENERS).retain(|l| !Arc::ptr_eq(l, &self.0));
    }
}

/// The descriptor that is readable when some tracee has changed state.
fn signals() -> Option<RawFd> {
    static SIGNALS: OnceLock<Option<OwnedFd>> = OnceLock::new();
    let made = SIGNALS.get_or_init(|| {
        let set = set_of(&[libc::SIGCHLD]);
        // SAFETY: a live signal set; the result is a fresh descriptor.
        unsafe {
            let flags = libc::SFD_NONBLOCK | libc::SFD_CLOEXEC;
            let fd = check(i64::from(libc::signalfd(-1, &set, flags))).ok()?;
            Some(OwnedFd::from_raw_fd(fd as RawFd))
        }
    });
    made.as_ref().map(AsRawFd::as_raw_fd)
}

/// Takes note of changes so far and tells the threads that they may concern, but for the calling one.
fn pass_on(signals: RawFd) {
    let mut buffer = [0u8; 128];
    let mut any = false;
    // SAFETY: a live buffer of the stated size; the descriptor does not block.
    while unsafe { libc::read(signals, buffer.as_mut_ptr().cast(), buffer.len()) } > 0 {
        any = true;
    }
    if !any {
        return;
    }
    let me = own_tid();
    for listener in lock(&LISTENERS).iter().filter(|l| l.tid != me) {
        if listener.stopping.load(Ordering::SeqCst)
            || lock(&listener.held).iter().any(|&t| has_news(t))
        {
            wake(listener.tid);
        }
    }
}

/// Whether a tracee of any thread has stopped or ended; it stays so.
fn has_news(tid: i32) -> bool {
    let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
    let options = libc::WSTOPPED | libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
    // SAFETY: the kernel writes one `siginfo_t` at a live place of that type.
    let r = unsafe { libc::waitid(libc::P_PID, tid as u32, info.as_mut_ptr(), options) };
    // SAFETY: zeroed, then filled or left alone; its fields are integers.
    r != 0 || unsafe { info.assume_init().si_pid() } != 0
}

/// Waits for `fds`, for a wake-up or, if so wished, for changes that concern somebody; at most for `timeout`.
fn wait(fds: &mut [libc::pollfd], timeout: Duration) -> io::Result<i64> {
    turns::look();
    let t = libc::timespec {
        tv_sec: timeout.as_secs() as i64,
        tv_nsec: i64::from(timeout.subsec_nanos()),
    };
    // Everything but the wake-up stays blocked that is.
    // SAFETY: a live set that the kernel fills with the mask of this thread, from which one signal is taken.
    let mask = unsafe {
        let mut mask = std::mem::zeroed();
        libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &mut mask);
        libc::sigdelset(&mut mask, WAKE);
        mask
    };
    // SAFETY: live descriptors to poll, of the stated number, a live time and a live mask.
    let n = unsafe { libc::ppoll(fds.as_mut_ptr(), fds.len() as u64, &t, &mask) };
    check(i64::from(n))
}

/// What is polled for reading.
pub fn readable(fd: RawFd) -> libc::pollfd {
    libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    }
}

/// Waits for what a listener waits for between stops: `fds`, or to be woken.
pub fn wait_idle(fds: &mut [libc::pollfd], timeout: Duration) {
    if wait(fds, timeout).is_err() {
        fds.iter_mut().for_each(|p| p.revents = 0);
    }
}

/// The same for the thread that watches for the others: the last of `fds` is free to be used for that.
pub fn wait_watching(fds: &mut [libc::pollfd], timeout: Duration) {
    let signals = signals().filter(|_| HOLDING.load(Ordering::SeqCst) > 0);
    let last = fds.len() - 1;
    fds[last] = readable(signals.unwrap_or(-1));
    wait_idle(fds, timeout);
    if let Some(signals) = signals.filter(|_| fds[last].revents != 0) {
        pass_on(signals);
    }
}

/// Sleeps, in the midst of a stop, until some tracee changes state or an event can be read from `events`, at most for
/// `timeout`.
pub fn wait_for_change(events: Option<RawFd>, timeout: Duration) {
    let Some(signals) = signals() else {
        return std::thread::sleep(timeout);
    };
    // Said before the wait, and until the thread asks again what has become of its tracees.
    ME.with(|m| m.get().map(|me| me.stopping.store(true, Ordering::SeqCst)));
    let mut fds = [readable(signals), readable(events.unwrap_or(-1))];
    wait_idle(&mut fds, timeout);
    if fds[0].revents != 0 {
        pass_on(signals);
    }
}

/// Says that the calling thread is in no stop any more.
pub fn stop_is_over() {
    ME.with(|m| m.get().map(|me| me.stopping.store(false, Ordering::SeqCst)));
}
