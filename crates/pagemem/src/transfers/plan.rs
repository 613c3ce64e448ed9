//! What a stop has cut short, and how the rest is carried out: which calls, on which kinds of descriptors, do less than
//! they were asked for when a thread is stopped.
//!
//! Source: the kernel's `fs/pipe.c`, `fs/splice.c`, `net/socket.c`, `net/ipv4/tcp.c`, `net/unix/af_unix.c`,
//! `drivers/char/random.c`, `drivers/char/mem.c`, `drivers/tty`. What is not named here either does not look at signals
//! (files), returns whatever there is (reading from pipes, terminals and sockets), or is restarted by the kernel.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use crate::arch::slot::{ISSUE_AGAIN, KEEP_ERROR, KEEP_ERROR_READING};
use crate::arch::Returned;
use crate::sys::{check, pidfd_getfd, pidfd_open_thread, read_remote};

/// How the rest is carried out.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The descriptor that is waited for, and device and inode of what it must still be.
    pub file: Option<(i32, [u64; 2])>,
    /// Waits until this can be done; None: needs no waiting.
    pub awaits: Option<i16>,
    /// Waits no longer than this.
    pub timeout: Option<Duration>,
    /// What the program is told then, if nothing was done.
    pub on_timeout: i64,
    /// Signals that are held while it waits; None: those that the program holds otherwise.
    pub mask: Option<u64>,
    /// The call that does some of the rest, and its arguments.
    pub call: i64,
    /// See `call`.
    pub args: [u64; 6],
    /// Which argument is an address that grows by `scale` for each unit done.
    pub address: Option<usize>,
    /// See `address`.
    pub scale: u64,
    /// Which argument says how much is asked for; None: the call takes a list of one buffer, its second argument.
    pub count: Option<usize>,
    /// Most to be asked for at once.
    pub limit: u64,
    /// Buffers (addresses and lengths) that are left; without an address only the length counts.
    pub pieces: Vec<[u64; 2]>,
    /// Where the program's own list of buffers ends.
    pub list_end: u64,
    /// Flags of a slot.
    pub ways: u64,
}

/// Bytes that do not block once a descriptor without a way of not blocking has been found ready: what fits into a pipe
/// that is not full, and into the buffer of a terminal.
const PIPE_PART: u64 = 4096;
const TERMINAL_PART: u64 = 64;
/// Bytes after which a call that does not wait looks for signals, as the kernel does after each page.
const BUSY_PART: u64 = 1 << 20;
/// What the kernel never transfers more of in a call.
const TRANSFER_MAX: u64 = 0x7fff_f000;
/// Most buffers in a list.
const PIECES_MAX: u64 = 1024;
/// Bytes of a `struct mmsghdr`.
const MESSAGE: u64 = 64;
const PIPE_FILES: i64 = 0x5049_5045;
const RWF_NOWAIT: u64 = 8;
/// What the C library asks for when it opens a file: a pipe has it if it was opened by a name.
const LARGE_FILE: i32 = 0o100_000;

/// Whether the call is one of those that a stop can cut short, or end.
pub fn concerns(call: &Returned) -> bool {
    let [_, b, c, d, e, _] = call.args;
    if call.result < 0 {
        return match call.number {
            libc::SYS_madvise => POPULATE.contains(&c),
            number => BEGUN_AGAIN.contains(&number),
        };
    }
    let asked = match call.number {
        libc::SYS_read
        | libc::SYS_pread64
        | libc::SYS_write
        | libc::SYS_sendto
        | libc::SYS_recvfrom => c,
        libc::SYS_getrandom => b,
        libc::SYS_sendfile => d,
        libc::SYS_splice | libc::SYS_copy_file_range => e,
        libc::SYS_sendmmsg | libc::SYS_recvmmsg => c & 0xffff_ffff,
        libc::SYS_readv
        | libc::SYS_writev
        | libc::SYS_preadv
        | libc::SYS_preadv2
        | libc::SYS_pwritev2
        | libc::SYS_sendmsg
        | libc::SYS_recvmsg => u64::MAX,
        _ => return false,
    };
    (call.result as u64) < asked.min(TRANSFER_MAX)
}

/// Calls that have done nothing yet where they return `EINTR`, and do so without a signal only because of a stop: on
/// sockets with a time-out, on files of file systems whose servers are told of interrupts, and a wait for a limited time.
const BEGUN_AGAIN: [i64; 27] = [
    libc::SYS_epoll_pwait2,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_openat,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_fallocate,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_getdents64,
];
/// `madvise` that has pages brought in, for reading and for writing.
const POPULATE: [u64; 2] = [22, 23];

/// A copy of a descriptor of the target, and its number there, for asking what it is.
struct Descriptor(OwnedFd, i32);

impl Descriptor {
    fn of(tid: i32, number: u64) -> Option<Self> {
        let thread = pidfd_open_thread(tid).ok()?;
        let number = number as i32;
        Some(Self(pidfd_getfd(&thread, number).ok()?, number))
    }

    fn raw(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    fn status(&self) -> Option<libc::stat> {
        let mut s = std::mem::MaybeUninit::<libc::stat>::zeroed();
        // SAFETY: the kernel writes one `stat` at a live place of that type.
        check(i64::from(unsafe {
            libc::fstat(self.raw(), s.as_mut_ptr())
        }))
        .ok()?;
        // SAFETY: zeroed, then filled; its fields are integers.
        Some(unsafe { s.assume_init() })
    }

    /// What a slot is told of it.
    fn identity(&self) -> Option<(i32, [u64; 2])> {
        let status = self.status()?;
        Some((self.1, [status.st_dev, status.st_ino]))
    }

    fn flags(&self) -> i32 {
        // SAFETY: no pointers.
        unsafe { libc::fcntl(self.raw(), libc::F_GETFL) }
    }

    fn blocks(&self) -> bool {
        let flags = self.flags();
        flags >= 0 && flags & libc::O_NONBLOCK == 0
    }

    /// An option of a socket that is one number.
    fn option(&self, name: i32) -> Option<i32> {
        let mut value = 0i32;
        let mut size = std::mem::size_of_val(&value) as libc::socklen_t;
        // SAFETY: the kernel writes at most `size` bytes, the size of `value`, and sets `size`.
        let r = unsafe {
            let at = (&raw mut value).cast();
            libc::getsockopt(self.raw(), libc::SOL_SOCKET, name, at, &mut size)
        };
        (r == 0).then_some(value)
    }

    /// How long a socket waits; None: for ever.
    fn patience(&self, name: i32) -> Option<Duration> {
        let mut t = libc::timeval {
            tv_sec: 0,
            tv_usec: 0,
        };
        let mut size = std::mem::size_of_val(&t) as libc::socklen_t;
        // SAFETY: the kernel writes at most `size` bytes, the size of `t`, and sets `size`.
        let r = unsafe {
            let at = (&raw mut t).cast();
            libc::getsockopt(self.raw(), libc::SOL_SOCKET, name, at, &mut size)
        };
        let t = Duration::new(t.tv_sec as u64, t.tv_usec as u32 * 1000);
        (r == 0 && !t.is_zero()).then_some(t)
    }

    /// Whether it is a socket that carries bytes, not messages.
    fn is_stream(&self) -> bool {
        const CARRIERS: [i32; 4] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_VSOCK];
        self.option(libc::SO_TYPE) == Some(libc::SOCK_STREAM)
            && self
                .option(libc::SO_DOMAIN)
                .is_some_and(|d| CARRIERS.contains(&d))
    }

    fn is_unix(&self) -> bool {
        self.option(libc::SO_DOMAIN) == Some(libc::AF_UNIX)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    In,
    Out,
}

/// How the rest of `call`, which thread `tid` is on its way back from, is carried out; None where it is not cut short, or
/// cannot be completed.
pub fn plan(tid: i32, call: &Returned) -> Option<Plan> {
    let [a, b, c, d, e, f] = call.args;
    if call.result < 0 {
        return awaiting(tid, call);
    }
    let done = call.result as u64;
    let one = || Some(vec![[b, c]]);
    let list = || read_list(tid, b, c);
    let mut list_end = b + 16 * (c & 0xffff_ffff);
    let made = match call.number {
        libc::SYS_getrandom => Some(Plan {
            call: call.number,
            args: [a, 0, c, 0, 0, 0],
            address: Some(0),
            scale: 1,
            count: Some(1),
            limit: BUSY_PART,
            pieces: rest_of(&[[a, b]], done)?,
            ..Plan::default()
        }),
        libc::SYS_write => bytes(tid, a, rest_of(&one()?, done)?, Way::Out, 0),
        libc::SYS_read | libc::SYS_pread64 => bytes(tid, a, rest_of(&one()?, done)?, Way::In, 0),
        libc::SYS_writev | libc::SYS_pwritev2 => {
            if call.number == libc::SYS_pwritev2 && f != 0 {
                return None;
            }
            bytes(tid, a, rest_of(&list()?, done)?, Way::Out, 0)
        }
        libc::SYS_readv | libc::SYS_preadv | libc::SYS_preadv2 => {
            if call.number == libc::SYS_preadv2 && f != 0 {
                return None;
            }
            bytes(tid, a, rest_of(&list()?, done)?, Way::In, 0)
        }
        libc::SYS_sendto => bytes(tid, a, rest_of(&one()?, done)?, Way::Out, d as i32),
        libc::SYS_recvfrom => bytes(tid, a, rest_of(&one()?, done)?, Way::In, d as i32),
        libc::SYS_sendmsg | libc::SYS_recvmsg => {
            let way = if call.number == libc::SYS_sendmsg {
                Way::Out
            } else {
                Way::In
            };
            let mut header = [0u8; 56];
            let whole = read_remote(tid, b, &mut header).ok()? == header.len();
            let word = |i: usize| {
                u64::from_le_bytes(header[8 * i..8 * i + 8].try_into().expect("8 bytes"))
            };
            // What came, or went, beside the bytes: how much room there was for more cannot be told any more.
            if !whole || (way == Way::In && word(4) != 0) {
                return None;
            }
            list_end = word(2) + 16 * word(3);
            let pieces = rest_of(&read_list(tid, word(2), word(3))?, done)?;
            bytes(tid, a, pieces, way, c as i32)
        }
        libc::SYS_sendmmsg | libc::SYS_recvmmsg => messages(tid, call, done),
        libc::SYS_sendfile => copied(tid, call, a, d, 3, done),
        libc::SYS_copy_file_range => copied(tid, call, c, e, 4, done),
        libc::SYS_splice => copied(tid, call, c, e, 4, done),
        _ => None,
    };
    made.map(|plan| Plan { list_end, ..plan })
}

/// A list of buffers in the memory of thread `tid`.
fn read_list(tid: i32, at: u64, n: u64) -> Option<Vec<[u64; 2]>> {
    if n > PIECES_MAX {
        return None;
    }
    let mut bytes = vec![0u8; n as usize * 16];
    if read_remote(tid, at, &mut bytes).ok()? != bytes.len() {
        return None;
    }
    let word = |b: &[u8]| u64::from_le_bytes(b.try_into().expect("8 bytes"));
    Some(
        bytes
            .chunks_exact(16)
            .map(|p| [word(&p[..8]), word(&p[8..])])
            .collect(),
    )
}

/// What is left of `pieces` after `done` bytes of them; None if nothing is, or more than the kernel takes at once.
fn rest_of(pieces: &[[u64; 2]], mut done: u64) -> Option<Vec<[u64; 2]>> {
    let asked = pieces.iter().fold(0u64, |n, p| n.saturating_add(p[1]));
    let mut rest = Vec::with_capacity(pieces.len());
    for &[at, length] in pieces {
        let skipped = done.min(length);
        done -= skipped;
        // Empty ones are kept behind the first, for they are in the program's own list.
        if skipped < length || !rest.is_empty() {
            rest.push([at + skipped, length - skipped]);
        }
    }
    if asked > TRANSFER_MAX {
        // Of one buffer the kernel takes as much as it does; with more of them it is left as it is.
        let over = asked - TRANSFER_MAX;
        match rest.as_mut_slice() {
            [one] if pieces.len() == 1 => one[1] = one[1].checked_sub(over)?,
            _ => return None,
        }
    }
    (rest.first().is_some_and(|p| p[1] > 0)).then_some(rest)
}

/// The rest of a transfer of bytes.
fn bytes(tid: i32, fd: u64, pieces: Vec<[u64; 2]>, way: Way, flags: i32) -> Option<Plan> {
    let file = Descriptor::of(tid, fd)?;
    if !file.blocks() {
        return None;
    }
    let status = file.status()?;
    let plan = Plan {
        file: Some((fd as i32, [status.st_dev, status.st_ino])),
        args: [fd, 0, 0, 0, 0, 0],
        address: Some(1),
        scale: 1,
        count: Some(2),
        limit: u64::MAX,
        pieces,
        ..Plan::default()
    };
    match (status.st_mode & libc::S_IFMT, way) {
        (libc::S_IFSOCK, way) => of_socket(&file, plan, way, flags),
        (libc::S_IFIFO, Way::Out) => Some(Plan {
            awaits: Some(libc::POLLOUT),
            ..if has_nowait(&file) {
                // Its list of one buffer is made where the rest is carried out.
                let unknown_position = u64::MAX;
                Plan {
                    call: libc::SYS_pwritev2,
                    args: [fd, 0, 1, unknown_position, unknown_position, RWF_NOWAIT],
                    count: None,
                    ..plan
                }
            } else {
                Plan {
                    call: libc::SYS_write,
                    limit: PIPE_PART,
                    ..plan
                }
            }
        }),
        (libc::S_IFCHR, Way::In) if fills_all(status.st_rdev) => Some(Plan {
            call: libc::SYS_read,
            limit: BUSY_PART,
            ..plan
        }),
        (libc::S_IFCHR, Way::Out) if is_terminal(status.st_rdev) => Some(Plan {
            awaits: Some(libc::POLLOUT),
            call: libc::SYS_write,
            limit: TERMINAL_PART,
            ..plan
        }),
        _ => None,
    }
}

fn of_socket(file: &Descriptor, plan: Plan, way: Way, flags: i32) -> Option<Plan> {
    const LEFT_ALONE: i32 = libc::MSG_DONTWAIT
        | libc::MSG_PEEK
        | libc::MSG_OOB
        | libc::MSG_ERRQUEUE
        | libc::MSG_ZEROCOPY
        | libc::MSG_FASTOPEN;
    if flags & LEFT_ALONE != 0 || !file.is_stream() {
        return None;
    }
    let mut plan = Plan {
        on_timeout: -i64::from(libc::EAGAIN),
        ..plan
    };
    match way {
        Way::In => {
            // Without this flag whatever has come is enough; with a mark of the program's own, less than it may never
            // count as ready.
            if flags & libc::MSG_WAITALL == 0 || file.option(libc::SO_RCVLOWAT)? > 1 {
                return None;
            }
            plan.awaits = Some(libc::POLLIN);
            plan.timeout = file.patience(libc::SO_RCVTIMEO);
            plan.call = libc::SYS_recvfrom;
            plan.args[3] = ((flags & !libc::MSG_WAITALL) | libc::MSG_DONTWAIT) as u64;
            plan.ways = KEEP_ERROR_READING;
        }
        Way::Out => {
            plan.awaits = Some(libc::POLLOUT);
            plan.timeout = file.patience(libc::SO_SNDTIMEO);
            plan.call = libc::SYS_sendto;
            // The kernel raises no SIGPIPE where something has been sent already.
            plan.args[3] = (flags | libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as u64;
            plan.ways = KEEP_ERROR;
        }
    }
    Some(plan)
}

/// Whether a pipe can be asked not to block for one call: not so if it was opened by a name.
fn has_nowait(file: &Descriptor) -> bool {
    let mut s = std::mem::MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: the kernel writes one `statfs` at a live place of that type.
    let r = unsafe { libc::fstatfs(file.raw(), s.as_mut_ptr()) };
    // SAFETY: zeroed, then filled; its fields are integers.
    r == 0 && unsafe { s.assume_init() }.f_type == PIPE_FILES && file.flags() & LARGE_FILE == 0
}

/// Devices that give as many bytes as are asked for: zeros and random numbers.
fn fills_all(device: u64) -> bool {
    libc::major(device) == 1 && matches!(libc::minor(device), 5 | 7 | 8 | 9)
}

fn is_terminal(device: u64) -> bool {
    matches!(libc::major(device), 4 | 5 | 136..=143 | 188)
}

/// The rest of a list of messages; of messages that are transferred whole only.
fn messages(tid: i32, call: &Returned, done: u64) -> Option<Plan> {
    let [a, b, c, d, e, _] = call.args;
    let file = Descriptor::of(tid, a)?;
    let flags = d as i32;
    let receives = call.number == libc::SYS_recvmmsg;
    let left_alone = libc::MSG_DONTWAIT
        | libc::MSG_PEEK
        | libc::MSG_ERRQUEUE
        | libc::MSG_WAITFORONE
        | libc::MSG_ZEROCOPY;
    // A limit on the time of all is looked at after each message.
    if !file.blocks()
        || flags & left_alone != 0
        || (receives && e != 0)
        || file.option(libc::SO_TYPE) == Some(libc::SOCK_STREAM)
    {
        return None;
    }
    let (awaits, patience) = if receives {
        (libc::POLLIN, libc::SO_RCVTIMEO)
    } else {
        (libc::POLLOUT, libc::SO_SNDTIMEO)
    };
    let messages = (c & 0xffff_ffff).min(PIECES_MAX);
    Some(Plan {
        file: file.identity(),
        awaits: Some(awaits),
        timeout: file.patience(patience),
        on_timeout: -i64::from(libc::EAGAIN),
        call: call.number,
        args: [a, 0, 0, (flags | libc::MSG_DONTWAIT) as u64, 0, 0],
        address: Some(1),
        scale: MESSAGE,
        count: Some(2),
        limit: u64::MAX,
        pieces: vec![[
            b + done * MESSAGE,
            messages.checked_sub(done).filter(|n| *n > 0)?,
        ]],
        ..Plan::default()
    })
}

/// The rest of what the kernel copies between two descriptors, whose positions, or the offsets that are pointed to, it has
/// advanced already.
fn copied(tid: i32, call: &Returned, to: u64, asked: u64, count: usize, done: u64) -> Option<Plan> {
    let target = Descriptor::of(tid, to)?;
    let mut left = asked
        .min(TRANSFER_MAX)
        .checked_sub(done)
        .filter(|n| *n > 0)?;
    let (awaits, limit) = match target.status()?.st_mode & libc::S_IFMT {
        libc::S_IFREG => (None, BUSY_PART),
        libc::S_IFSOCK if target.blocks() => (Some(libc::POLLOUT), PIPE_PART),
        // Into a pipe the kernel puts what there is room for.
        _ => return None,
    };
    if call.number != libc::SYS_splice {
        left = left.min(before_end(tid, call)?);
    } else {
        // It ends when the pipe is empty: the rest is what was there when it was stopped.
        let source = Descriptor::of(tid, call.args[0])?;
        let mut there = 0i32;
        // SAFETY: the kernel writes one int into a live one.
        let r = unsafe { libc::ioctl(source.raw(), libc::FIONREAD, &mut there) };
        if r != 0 || there <= 0 || call.args[5] as u32 & libc::SPLICE_F_NONBLOCK != 0 {
            return None;
        }
        left = left.min(there as u64);
    }
    if left == 0 {
        return None;
    }
    let mut args = call.args;
    args[count] = 0;
    Some(Plan {
        file: target.identity(),
        awaits,
        timeout: awaits.and_then(|_| target.patience(libc::SO_SNDTIMEO)),
        call: call.number,
        args,
        count: Some(count),
        limit,
        pieces: vec![[0, left]],
        ways: KEEP_ERROR,
        ..Plan::default()
    })
}

/// How many bytes the file that is copied from has after the present place: where it has ended the copying is over.
fn before_end(tid: i32, call: &Returned) -> Option<u64> {
    let [a, b, c, ..] = call.args;
    let (number, offset_at) = if call.number == libc::SYS_sendfile {
        (b, c)
    } else {
        (a, b)
    };
    let source = Descriptor::of(tid, number)?;
    let status = source.status()?;
    if status.st_mode & libc::S_IFMT != libc::S_IFREG {
        return None;
    }
    let at = if offset_at == 0 {
        // SAFETY: no pointers; the place stays where it is.
        check(unsafe { libc::lseek(source.raw(), 0, libc::SEEK_CUR) }).ok()?
    } else {
        let mut word = [0u8; 8];
        if read_remote(tid, offset_at, &mut word).ok()? != word.len() {
            return None;
        }
        i64::from_le_bytes(word)
    };
    u64::try_from(status.st_size - at).ok()
}

/// Where the call has received some messages, but not all: takes the error away that ended it, a stop's, which the kernel
/// keeps for whoever uses the socket next (as 512, which no program knows).
pub fn forget_error_of_stop(tid: i32, call: &Returned) {
    if call.number == libc::SYS_recvmmsg && call.result > 0 {
        let socket = Descriptor::of(tid, call.args[0]).filter(Descriptor::blocks);
        socket.and_then(|s| s.option(libc::SO_ERROR));
    }
}

/// A call that waits for a limited time, mostly on a socket, and has done nothing yet: the kernel ends such with `EINTR`.
fn awaiting(tid: i32, call: &Returned) -> Option<Plan> {
    let again = |file: &Descriptor, awaits, timeout, on_timeout: i32| Plan {
        file: file.identity(),
        awaits: Some(awaits),
        timeout: Some(timeout),
        on_timeout: -i64::from(on_timeout),
        ways: ISSUE_AGAIN,
        ..Plan::default()
    };
    let [a, _, c, d, mask, _] = call.args;
    if call.number == libc::SYS_epoll_pwait2 {
        // It may have been changed since the kernel read it.
        let &[seconds, nanoseconds] = read_list(tid, d, 1)?.first()?;
        if seconds > i64::MAX as u64 || nanoseconds >= 1_000_000_000 {
            return None;
        }
        let timeout = Duration::new(seconds, nanoseconds as u32);
        let mut held = [0u8; 8];
        if mask != 0 && read_remote(tid, mask, &mut held).ok()? != held.len() {
            return None;
        }
        let plan = again(&Descriptor::of(tid, a)?, libc::POLLIN, timeout, 0);
        return Some(Plan {
            mask: (mask != 0).then(|| u64::from_le_bytes(held)),
            ..plan
        });
    }
    if call.number == libc::SYS_splice {
        let on = |number, awaits, patience| {
            let socket = Descriptor::of(tid, number)?;
            let timeout = socket.patience(patience)?;
            Some(again(&socket, awaits, timeout, libc::EAGAIN))
        };
        return on(c, libc::POLLOUT, libc::SO_SNDTIMEO)
            .or_else(|| on(a, libc::POLLIN, libc::SO_RCVTIMEO));
    }
    let connects = call.number == libc::SYS_connect;
    let (awaits, patience) = match call.number {
        libc::SYS_read
        | libc::SYS_readv
        | libc::SYS_recvfrom
        | libc::SYS_recvmsg
        | libc::SYS_recvmmsg
        | libc::SYS_accept
        | libc::SYS_accept4 => (libc::POLLIN, libc::SO_RCVTIMEO),
        libc::SYS_write
        | libc::SYS_writev
        | libc::SYS_sendto
        | libc::SYS_sendmsg
        | libc::SYS_sendmmsg
        | libc::SYS_sendfile
        | libc::SYS_connect => (libc::POLLOUT, libc::SO_SNDTIMEO),
        _ => return None,
    };
    let file = Descriptor::of(tid, call.args[0])?;
    let timeout = file.patience(patience)?;
    if connects && file.is_unix() {
        return None;
    }
    let on_timeout = if connects {
        libc::EINPROGRESS
    } else {
        libc::EAGAIN
    };
    Some(again(&file, awaits, timeout, on_timeout))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_begins_in_the_midst_of_a_buffer() {
        assert_eq!(rest_of(&[[1000, 100]], 30), Some(vec![[1030, 70]]));
        assert_eq!(rest_of(&[[1000, 100]], 100), None);
        let list = [[1000, 10], [2000, 0], [3000, 10], [4000, 0], [5000, 10]];
        assert_eq!(
            rest_of(&list, 10),
            Some(vec![[3000, 10], [4000, 0], [5000, 10]])
        );
        assert_eq!(
            rest_of(&list, 13),
            Some(vec![[3003, 7], [4000, 0], [5000, 10]])
        );
        assert_eq!(rest_of(&list, 29), Some(vec![[5009, 1]]));
        assert_eq!(rest_of(&list, 30), None);
    }

    #[test]
    fn no_more_is_left_than_the_kernel_would_have_taken() {
        let huge = [[1 << 40, TRANSFER_MAX + 100]];
        assert_eq!(
            rest_of(&huge, 1),
            Some(vec![[(1 << 40) + 1, TRANSFER_MAX - 1]])
        );
        assert_eq!(rest_of(&huge, TRANSFER_MAX), None);
        assert_eq!(rest_of(&[[0, TRANSFER_MAX], [1 << 40, 1]], 7), None);
    }

    #[test]
    fn a_call_that_has_done_all_or_cannot_be_cut_short_is_let_be() {
        let call = |number, result| Returned {
            number,
            args: [0, 0, 100, 0, 0, 0],
            result,
        };
        assert!(concerns(&call(libc::SYS_write, 99)));
        assert!(!concerns(&call(libc::SYS_write, 100)));
        assert!(concerns(&call(libc::SYS_accept, -4)));
        assert!(!concerns(&call(libc::SYS_accept, 5)));
        assert!(!concerns(&call(libc::SYS_close, -4)));
        assert!(!concerns(&call(libc::SYS_futex, 1)));
    }
}
