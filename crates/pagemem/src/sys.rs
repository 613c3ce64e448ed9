//! Thin wrappers over the system calls of this crate: results as `io::Result`, nothing decided.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::hold;
use crate::maps::Line;
use crate::pagemap::{self, Query};
use crate::status::Status;

/// Bytes of a page.
pub const PAGE: u64 = 4096;

/// Turns the C convention (-1 and `errno`) into a result.
pub fn check(r: libc::c_long) -> io::Result<i64> {
    if r < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(r)
    }
}

/// `pidfd_open`.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the result is a fresh descriptor that nothing else owns.
    unsafe {
        Ok(OwnedFd::from_raw_fd(
            check(libc::syscall(libc::SYS_pidfd_open, pid, 0))? as RawFd,
        ))
    }
}

/// A handle of a thread, which gets at the table of descriptors that it uses: that need not be its process's. Before Linux
/// 6.9 there is none but for a first thread.
pub fn pidfd_open_thread(tid: i32) -> io::Result<OwnedFd> {
    const PIDFD_THREAD: libc::c_int = libc::O_EXCL;
    // SAFETY: no pointers; the result is a fresh descriptor that nothing else owns.
    let opened = check(unsafe { libc::syscall(libc::SYS_pidfd_open, tid, PIDFD_THREAD) });
    match opened {
        // SAFETY: a fresh descriptor, as above.
        Ok(fd) => Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) }),
        Err(_) => pidfd_open(tid),
    }
}

/// `pidfd_getfd`: a copy of descriptor `fd` of the process behind `pidfd`.
pub fn pidfd_getfd(pidfd: &OwnedFd, fd: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the result is a fresh descriptor that nothing else owns.
    unsafe {
        Ok(OwnedFd::from_raw_fd(check(libc::syscall(
            libc::SYS_pidfd_getfd,
            pidfd.as_raw_fd(),
            fd,
            0,
        ))? as RawFd))
    }
}

/// Whether the process behind `pidfd` has ended; until then its number is nobody else's.
pub fn has_ended(pidfd: &OwnedFd) -> bool {
    let mut p = libc::pollfd {
        fd: pidfd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one live pollfd, no waiting.
    unsafe { libc::poll(&mut p, 1, 0) == 1 && p.revents != 0 }
}

/// The state of a thread as `/proc` writes it (`R`, `S`, `D`, `Z`, …); None for one that is not there.
pub fn thread_state(pid: i32, tid: i32) -> Option<char> {
    Stat::of_thread(pid, tid)?.state()
}

/// What a thread's or a process's line of numbers has behind the name, which may be any bytes.
#[derive(Debug)]
pub struct Stat(String);

impl Stat {
    /// Of thread `tid` of process `pid`; None where it is not there.
    pub fn of_thread(pid: i32, tid: i32) -> Option<Self> {
        Self::parse(&std::fs::read(format!("/proc/{pid}/task/{tid}/stat")).ok()?)
    }

    /// Of process `pid`; None where it is not there.
    pub fn of_process(pid: i32) -> Option<Self> {
        Self::parse(&std::fs::read(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(line: &[u8]) -> Option<Self> {
        let behind = line.iter().rposition(|b| *b == b')')?;
        let fields = line.get(behind + 2..)?;
        Some(Self(String::from_utf8_lossy(fields).into_owned()))
    }

    /// The state; see [`thread_state`].
    pub fn state(&self) -> Option<char> {
        self.0.chars().next()
    }

    /// A number, by its place behind the state.
    pub fn number<T: std::str::FromStr>(&self, place: usize) -> Option<T> {
        self.0.split(' ').nth(place)?.parse().ok()
    }
}

/// Whether the thread is a zombie or gone.
pub fn thread_ended(pid: i32, tid: i32) -> bool {
    matches!(thread_state(pid, tid), None | Some('Z' | 'X'))
}

/// The numbers among the names in a folder: processes in `/proc`, threads in `/proc/PID/task`. Empty if it is gone.
pub fn numbers_in(folder: &str) -> Vec<i32> {
    let number = |e: std::fs::DirEntry| e.file_name().to_str()?.parse().ok();
    std::fs::read_dir(folder).map_or_else(
        |_| Vec::new(),
        |entries| entries.flatten().filter_map(number).collect(),
    )
}

/// Set once this process fills pages for which other processes wait in system calls, too.
static FILLS_FOR_CALLS: AtomicBool = AtomicBool::new(false);

/// Says that this process fills pages for which others wait, also in system calls: from now on it must not wait for such
/// a page itself.
pub fn fill_for_calls() {
    FILLS_FOR_CALLS.store(true, Ordering::Relaxed);
}

/// The memory of process `pid` as a file, where it must not be waited for a page: who reads or writes by this file never
/// does, but gets `EIO`. None also where no descriptor is left for it.
fn memory_file(pid: i32, write: bool) -> Option<std::fs::File> {
    let path = || format!("/proc/{pid}/mem");
    FILLS_FOR_CALLS.load(Ordering::Relaxed).then(|| {
        let mut how = std::fs::OpenOptions::new();
        how.read(!write).write(write).open(path()).ok()
    })?
}

/// Reads `buf.len()` bytes at `addr` of process `pid`; the number of bytes read.
pub fn read_remote(pid: i32, addr: u64, buf: &mut [u8]) -> io::Result<usize> {
    if let Some(memory) = memory_file(pid, false) {
        return memory.read_at(buf, addr);
    }
    let local = libc::iovec {
        iov_base: buf.as_mut_ptr().cast(),
        iov_len: buf.len(),
    };
    let remote = libc::iovec {
        iov_base: addr as *mut c_void,
        iov_len: buf.len(),
    };
    // SAFETY: `local` describes a live, exclusively borrowed buffer; `remote` is only interpreted in the other process.
    Ok(check(unsafe { libc::process_vm_readv(pid, &local, 1, &remote, 1, 0) } as i64)? as usize)
}

/// Writes `buf` at `addr` of process `pid`, all of it or an error.
pub fn write_remote(pid: i32, addr: u64, buf: &[u8]) -> io::Result<()> {
    crate::failpoints::step();
    if let Some(memory) = memory_file(pid, true) {
        return match memory.write_at(buf, addr)? {
            n if n == buf.len() => Ok(()),
            _ => Err(io::Error::from_raw_os_error(libc::EFAULT)),
        };
    }
    let local = libc::iovec {
        iov_base: buf.as_ptr() as *mut c_void,
        iov_len: buf.len(),
    };
    let remote = libc::iovec {
        iov_base: addr as *mut c_void,
        iov_len: buf.len(),
    };
    // SAFETY: `local` describes a live buffer that is only read; `remote` is only interpreted in the other process.
    let n = check(unsafe { libc::process_vm_writev(pid, &local, 1, &remote, 1, 0) } as i64)?;
    if n as usize == buf.len() {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::EFAULT))
    }
}

/// The ranges, start and end, of `count` elements of a vector (`struct iovec`) at `at` of process `pid`.
pub fn remote_ranges(pid: i32, at: u64, count: u64) -> Vec<(u64, u64)> {
    const COUNT_MAX: u64 = 1024; // UIO_MAXIOV: no call takes more
    let mut words = vec![0u8; 16 * count.min(COUNT_MAX) as usize];
    let read = read_remote(pid, at, &mut words).unwrap_or(0);
    let word = |b: &[u8]| u64::from_le_bytes(b.try_into().expect("8 bytes"));
    words[..read]
        .chunks_exact(16)
        .map(|r| (word(&r[..8]), word(&r[8..])))
        .map(|(start, bytes)| (start, start.saturating_add(bytes)))
        .collect()
}

/// The thread that traces thread `tid` of `pid`: 0 where none does, None where it is not there.
pub fn tracer_of(pid: i32, tid: i32) -> Option<i32> {
    number_in_status(pid, tid, "TracerPid")
}

/// The parent of process `pid`, None where it is not there.
pub fn parent_of(pid: i32) -> Option<i32> {
    number_in_status(pid, pid, "PPid")
}

fn number_in_status(pid: i32, tid: i32, name: &str) -> Option<i32> {
    let number = Status::of(pid, tid).ok()?.number(name)?;
    i32::try_from(number).ok()
}

/// Whether this machine has swap, or that cannot be told.
pub fn has_swap() -> bool {
    let mut info = std::mem::MaybeUninit::<libc::sysinfo>::zeroed();
    // SAFETY: the kernel fills one `sysinfo` at a live place of that type.
    if unsafe { libc::sysinfo(info.as_mut_ptr()) } != 0 {
        return true;
    }
    // SAFETY: zeroed, then filled; its fields are integers.
    unsafe { info.assume_init() }.totalswap > 0
}

/// CPU time of this thread so far.
pub fn cpu_time() -> Duration {
    let mut t = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes one timespec into a live one.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut t) };
    Duration::new(t.tv_sec as u64, t.tv_nsec as u32)
}

/// Which file a mapping is of. An inode number alone means nothing: each file system has its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileId {
    /// Device: major number in the upper, minor in the lower half.
    pub device: u64,
    /// Inode on it.
    pub inode: u64,
}

impl FileId {
    /// Anonymous memory.
    pub const NONE: Self = Self {
        device: 0,
        inode: 0,
    };

    /// From the two numbers of a device.
    pub fn new(major: u32, minor: u32, inode: u64) -> Self {
        Self {
            device: u64::from(major) << 32 | u64::from(minor),
            inode,
        }
    }
}

/// A mapping as `PROCMAP_QUERY` tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vma {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
    /// `r w x` as 1, 2, 4; shared as 8.
    pub flags: u64,
    /// Byte offset in the file.
    pub offset: u64,
    /// The file.
    pub file: FileId,
}

/// Readable, writable, not executable, private.
pub const VMA_PRIVATE_RW: u64 = 3;
/// Shared, and no access.
pub const VMA_SHARED_NONE: u64 = 8;

#[repr(C)]
#[derive(Default)]
struct ProcmapQuery {
    size: u64,
    query_flags: u64,
    query_addr: u64,
    vma_start: u64,
    vma_end: u64,
    vma_flags: u64,
    vma_page_size: u64,
    vma_offset: u64,
    inode: u64,
    dev_major: u32,
    dev_minor: u32,
    vma_name_size: u32,
    build_id_size: u32,
    vma_name_addr: u64,
    build_id_addr: u64,
}

const PROCMAP_QUERY: libc::c_ulong = 0xc068_6611; // _IOWR('f', 17, struct procmap_query)
const COVERING_OR_NEXT: u64 = 0x10;

/// The mappings of one process, asked one by one (`PROCMAP_QUERY`, Linux 6.11) or, on older kernels, from the text.
#[derive(Debug)]
pub struct Maps {
    file: File,
    text: Option<Vec<Vma>>,
}

impl Maps {
    /// Opens `/proc/PID/maps`.
    pub fn open(pid: i32) -> io::Result<Self> {
        Ok(Self {
            file: File::open(format!("/proc/{pid}/maps"))?,
            text: None,
        })
    }

    /// Whether there was memory when it was opened: not so of a thread that is about to end.
    pub fn has_memory(&mut self) -> bool {
        matches!(self.at_or_after(0), Ok(Some(_)))
    }

    /// The mapping that covers `addr` or the next one above it.
    pub fn at_or_after(&mut self, addr: u64) -> io::Result<Option<Vma>> {
        if let Some(all) = &self.text {
            let i = all.partition_point(|v| v.end <= addr);
            return Ok(all.get(i).copied());
        }
        let mut q = ProcmapQuery {
            size: std::mem::size_of::<ProcmapQuery>() as u64,
            query_flags: COVERING_OR_NEXT,
            query_addr: addr,
            ..Default::default()
        };
        // SAFETY: the kernel reads and writes one `procmap_query` of the size stated in its first field.
        match check(unsafe { libc::ioctl(self.file.as_raw_fd(), PROCMAP_QUERY, &mut q) } as i64) {
            Ok(_) => Ok(Some(Vma {
                start: q.vma_start,
                end: q.vma_end,
                flags: q.vma_flags & 15,
                offset: q.vma_offset,
                file: FileId::new(q.dev_major, q.dev_minor, q.inode),
            })),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(e) if e.raw_os_error() == Some(libc::ENOTTY) => {
                self.text = Some(self.read_text()?);
                self.at_or_after(addr)
            }
            Err(e) => Err(e),
        }
    }

    /// The first mapping of a file with a byte in `[start, end)`. Cost: a question for each mapping on the way.
    pub fn next_of(&mut self, file: FileId, start: u64, end: u64) -> io::Result<Option<Vma>> {
        let mut at = start;
        while let Some(v) = self.at_or_after(at)?.filter(|v| v.start < end) {
            if v.file == file {
                return Ok(Some(v));
            }
            at = v.end;
        }
        Ok(None)
    }

    /// Shows `found` the name of each shared writable mapping of a file, until it says that it has seen enough. Costs a
    /// system call for each of them, and some 50 ns in the kernel for each other mapping.
    pub fn shared_writable(&mut self, mut found: impl FnMut(&[u8]) -> bool) -> io::Result<()> {
        const WRITABLE_SHARED_FILE: u64 = 0x02 | 0x08 | 0x20;
        let mut name = vec![0u8; libc::PATH_MAX as usize];
        let mut addr = 0;
        loop {
            let mut q = ProcmapQuery {
                size: std::mem::size_of::<ProcmapQuery>() as u64,
                query_flags: COVERING_OR_NEXT | WRITABLE_SHARED_FILE,
                query_addr: addr,
                vma_name_size: name.len() as u32,
                vma_name_addr: name.as_mut_ptr() as u64,
                ..Default::default()
            };
            // SAFETY: the kernel reads and writes one `procmap_query` of the size stated in its first field, and at most
            // `vma_name_size` bytes at `vma_name_addr`, a live buffer of that size.
            let r = unsafe { libc::ioctl(self.file.as_raw_fd(), PROCMAP_QUERY, &mut q) };
            match check(i64::from(r)) {
                Ok(_) => {
                    let length = (q.vma_name_size as usize).saturating_sub(1);
                    if found(&name[..length]) {
                        return Ok(());
                    }
                    addr = q.vma_end;
                }
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
                Err(e) if e.raw_os_error() == Some(libc::ENOTTY) => {
                    let text = self.whole_text()?;
                    text.lines()
                        .filter_map(|l| l.split_once(' '))
                        .filter(|(_, rest)| {
                            rest.starts_with("rw-s")
                                || rest.starts_with("rwxs")
                                || rest.starts_with("-w-s")
                        })
                        .any(|(_, rest)| {
                            // perms offset device inode, then the name
                            let name = rest.splitn(5, ' ').nth(4).unwrap_or_default();
                            found(name.trim_start().as_bytes())
                        });
                    return Ok(());
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Forgets what was read from the text; the next question reads anew.
    pub fn refresh(&mut self) -> io::Result<()> {
        if self.text.is_some() {
            self.text = Some(self.read_text()?);
        }
        Ok(())
    }

    fn read_text(&self) -> io::Result<Vec<Vma>> {
        Ok(self.whole_text()?.lines().filter_map(parse_line).collect())
    }

    /// A name may be any bytes.
    fn whole_text(&self) -> io::Result<String> {
        use std::io::{Read, Seek};
        let mut text = Vec::new();
        let mut f = &self.file;
        f.rewind()?;
        f.read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

/// Whether all of a range is anonymous memory with these flags (see [`Vma`]).
pub fn all_are(maps: &mut Maps, range: std::ops::Range<u64>, flags: u64) -> io::Result<bool> {
    let mut at = range.start;
    while at < range.end {
        match maps.at_or_after(at)? {
            Some(v) if v.start <= at && v.flags == flags && v.file == FileId::NONE => at = v.end,
            _ => return Ok(false),
        }
    }
    Ok(true)
}

/// Parses one line of `/proc/PID/maps`.
pub fn parse_line(line: &str) -> Option<Vma> {
    let line = Line::parse(line.as_bytes())?;
    Some(Vma {
        start: line.start,
        end: line.end,
        flags: u64::from(line.perms),
        offset: line.offset,
        file: FileId {
            device: line.dev,
            inode: line.inode,
        },
    })
}

/// Whether the page at `addr` of `pid` is in a mapping watched by a userfaultfd in asynchronous write-protect mode.
pub fn tracks_writes(pid: i32, addr: u64) -> bool {
    Tracked::open(pid).is_ok_and(|t| t.is(addr))
}

/// Asks whether pages of a process are in mappings whose writes are tracked, as those that we have armed are. Those with
/// a userfaultfd of the program's own are not, nor any that it has mapped since.
#[derive(Debug)]
pub struct Tracked(File);

impl Tracked {
    /// Opens the page map of `pid`.
    pub fn open(pid: i32) -> io::Result<Self> {
        File::open(format!("/proc/{pid}/pagemap")).map(Self)
    }

    /// Whether there was memory when it was opened: not so of a thread that is about to end.
    pub fn has_memory(&self) -> bool {
        self.0.read_at(&mut [0; 8], 0).is_ok_and(|n| n == 8)
    }

    /// Whether the page at `addr` is; changes nothing.
    pub fn is(&self, addr: u64) -> bool {
        self.written(addr, addr + PAGE, |_, _| ()).is_ok()
    }

    /// Tells `found` the ranges, among `[start, end)`, that were written since their writes were last asked for; changes
    /// nothing. An error where a mapping among them is not tracked.
    pub fn written(&self, start: u64, end: u64, mut found: impl FnMut(u64, u64)) -> io::Result<()> {
        let query = Query {
            flags: pagemap::SCAN_CHECK_WPASYNC,
            mask: pagemap::PAGE_IS_WRITTEN,
            returned: pagemap::PAGE_IS_WRITTEN,
            ..Query::default()
        };
        let ranges = pagemap::scan(self.0.as_raw_fd(), &[start], &[end], &query)?;
        for (&from, &to) in ranges.start.iter().zip(&ranges.end) {
            found(from, to);
        }
        Ok(())
    }

    /// Whose each page at `at` is; see [`hold`].
    pub fn holds(&self, at: &[u64]) -> io::Result<Vec<u8>> {
        hold::holds(self.0.as_raw_fd(), at)
    }

    /// Which pages of `at`, of those numbered in `which`, a huge page maps as a whole; see [`hold::in_huge_pages`].
    pub fn in_huge_pages(&self, at: &[u64], which: &[usize]) -> io::Result<Vec<usize>> {
        hold::in_huge_pages(self.0.as_raw_fd(), at, which)
    }
}

/// Whether process `pid` has pages pinned for a device, and whether it has some locked in memory, by its own account.
pub fn pinned_and_locked(pid: i32) -> (bool, bool) {
    let Ok(status) = Status::of(pid, pid) else {
        return (false, false);
    };
    let positive = |name: &str| status.number(name).is_some_and(|n| n > 0);
    (positive("VmPin"), positive("VmLck"))
}

/// The mappings of process `pid` that are locked in memory. Cost: the kernel walks over all its pages.
pub fn locked(pid: i32) -> io::Result<Vec<(u64, u64)>> {
    let text = std::fs::read(format!("/proc/{pid}/smaps"))?;
    let mut range = None;
    let mut found = Vec::new();
    for line in String::from_utf8_lossy(&text).lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            found.extend(range.filter(|_| flags.split_ascii_whitespace().any(|f| f == "lo")));
        } else if let Some(mapping) = parse_line(line) {
            range = Some((mapping.start, mapping.end));
        }
    }
    Ok(found)
}

/// The ids of all processes that are there now.
pub fn all_processes() -> Vec<i32> {
    numbers_in("/proc")
}

/// Starts a thread that receives no signal: what is sent to the process is another thread's to take note of.
pub fn quiet_thread(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    // SAFETY: live signal sets; only this thread's mask changes, and is as it was after the call.
    unsafe {
        let (mut all, mut before) = (std::mem::zeroed(), std::mem::zeroed());
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_BLOCK, &all, &mut before);
        let made = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(work);
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut());
        made.map(drop)
    }
}

/// Claims no more of a processor than thread `thread`, of the engine, does: that can be told to be modest.
pub fn be_as_modest_as(thread: i32) {
    // SAFETY: no pointers but one to a live structure; what the system refuses is left as it is.
    unsafe {
        let nice = libc::getpriority(libc::PRIO_PROCESS, thread as libc::id_t);
        if nice != libc::getpriority(libc::PRIO_PROCESS, 0) {
            libc::setpriority(libc::PRIO_PROCESS, 0, nice);
        }
        let kind = libc::sched_getscheduler(thread);
        if kind == libc::SCHED_IDLE && kind != libc::sched_getscheduler(0) {
            let none = libc::sched_param { sched_priority: 0 };
            libc::sched_setscheduler(0, kind, &none);
        }
    }
}

/// The process at the other end of a socket, as it was when it connected or listened.
pub fn peer(stream: &impl AsRawFd) -> io::Result<libc::ucred> {
    let mut who = libc::ucred {
        pid: 0,
        uid: u32::MAX,
        gid: u32::MAX,
    };
    let mut size = std::mem::size_of_val(&who) as libc::socklen_t;
    // SAFETY: the kernel writes at most `size` bytes, the size of `who`, and sets `size`.
    check(i64::from(unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut who).cast(),
            &mut size,
        )
    }))?;
    Ok(who)
}

/// Whether the process at the other end of a socket is this user's or root's.
pub fn is_of_our_user(stream: &impl AsRawFd) -> bool {
    // SAFETY: no pointers.
    let user = unsafe { libc::geteuid() };
    peer(stream).is_ok_and(|who| who.uid == user || who.uid == 0)
}

/// The records of a request: two 64-bit words each, little-endian.
pub fn pairs(records: &[u8]) -> impl Iterator<Item = (u64, u64)> + '_ {
    let word = |b: &[u8]| u64::from_le_bytes(b.try_into().expect("8 bytes"));
    records
        .chunks_exact(16)
        .map(move |r| (word(&r[..8]), word(&r[8..])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_behind_a_name_that_looks_like_more_of_the_line() {
        let number = |line: &[u8]| Stat::parse(line).and_then(|s| s.number::<u64>(6));
        let line = b"7 (a) S 1 16400 ) R 1 7 7 0 -1 4194304 76 0";
        assert_eq!(Stat::parse(line).and_then(|s| s.state()), Some('R'));
        assert_eq!(number(line), Some(4_194_304));
        assert_eq!(number(b"7 (iou-wrk-7) S 1 7 7 0 -1 16464 0"), Some(16_464));
        assert_eq!(number(b"7 (cut) S 1 7"), None);
        assert_eq!(number(b""), None);
    }

    #[test]
    fn a_thread_whose_name_is_no_text_has_not_ended() {
        let me = std::process::id() as i32;
        let named = std::thread::spawn(move || {
            // The first half of a letter, as is left of a long name.
            let name = c"caf\xc3";
            // SAFETY: names the calling thread; a string of less than 16 bytes with its end.
            assert_eq!(unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) }, 0);
            let tid = crate::changes::own_tid();
            (thread_state(me, tid), thread_ended(me, tid))
        });
        assert_eq!(named.join().expect("a state"), (Some('R'), false));
    }
}
