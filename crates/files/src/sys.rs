//! The kernel's calls on files, each with a safe face: opening below a folder, reading, extents, sharing.
//!
//! For: the other modules. Nothing here decides anything.

use std::ffi::{CStr, CString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// What `openat2` is asked never to do: leave the folder or its mount, follow links.
const RESOLVE: u64 =
    RESOLVE_NO_XDEV | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS | RESOLVE_BENEATH;
const RESOLVE_NO_XDEV: u64 = 0x01;
const RESOLVE_NO_MAGICLINKS: u64 = 0x02;
const RESOLVE_NO_SYMLINKS: u64 = 0x04;
const RESOLVE_BENEATH: u64 = 0x08;
/// Bytes of a path handed to the kernel at once; it takes less than 4096.
const PATH_MOST: usize = 4000;

#[repr(C)]
struct OpenHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}

/// What tells that a file is the one that was listed, and has not been written since.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stamp {
    /// Device of the inode.
    pub dev: u64,
    /// Number of the inode.
    pub ino: u64,
    /// Bytes.
    pub size: u64,
    /// Nanoseconds since 1970 when its bytes were changed last.
    pub mtime: i64,
    /// Likewise, when anything of it was changed last.
    pub ctime: i64,
}

/// What is known of a file without its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Status {
    /// Which file, at which time.
    pub stamp: Stamp,
    /// Kind and permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Names.
    pub nlink: u32,
    /// Bytes allocated, in units of 512.
    pub blocks: u64,
    /// Something else is mounted there.
    pub mount_root: bool,
}

impl Status {
    /// Whether it is a regular file.
    pub fn is_file(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFREG
    }

    /// Whether it is a folder.
    pub fn is_folder(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFDIR
    }
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us; nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

fn open_step(folder: RawFd, path: &[u8], flags: i32) -> io::Result<OwnedFd> {
    let path = CString::new(path).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let how = OpenHow {
        flags: (flags | libc::O_CLOEXEC) as u64,
        mode: 0,
        resolve: RESOLVE,
    };
    // SAFETY: a path that ends in zero and a structure of the size given, both alive during the call.
    owned(unsafe {
        libc::syscall(
            libc::SYS_openat2,
            folder,
            path.as_ptr(),
            &raw const how,
            size_of::<OpenHow>(),
        )
    })
}

/// Opens what lies at `path` below the folder `root`, without following a link and without entering another mount.
/// A path may be longer than the kernel takes at once.
///
/// # Errors
/// The kernel's; `EXDEV` for another mount, `ELOOP` for a symbolic link.
pub fn open_beneath(root: RawFd, path: &[u8], flags: i32) -> io::Result<OwnedFd> {
    let mut rest = path;
    let mut folder: Option<OwnedFd> = None;
    while rest.len() > PATH_MOST {
        let cut = rest[..PATH_MOST].iter().rposition(|&byte| byte == b'/');
        let cut = cut.ok_or_else(|| io::Error::from_raw_os_error(libc::ENAMETOOLONG))?;
        let at = folder.as_ref().map_or(root, AsRawFd::as_raw_fd);
        folder = Some(open_step(
            at,
            &rest[..cut],
            libc::O_PATH | libc::O_DIRECTORY,
        )?);
        rest = &rest[cut + 1..];
    }
    let at = folder.as_ref().map_or(root, AsRawFd::as_raw_fd);
    open_step(
        at,
        if rest.is_empty() { b"." } else { rest },
        flags | libc::O_NOFOLLOW,
    )
}

/// Opens what a descriptor made with `O_PATH` stands for. `O_NOATIME` where the kernel allows it.
///
/// # Errors
/// The kernel's.
pub fn reopen(fd: RawFd, flags: i32) -> io::Result<OwnedFd> {
    let mut text = [0u8; 32];
    let name = {
        use std::io::Write;
        let mut rest = &mut text[..];
        write!(rest, "/proc/self/fd/{fd}\0").expect("room for a number");
        CStr::from_bytes_until_nul(&text).expect("a zero was written")
    };
    let open = |more: i32| {
        // SAFETY: a path that ends in zero, alive during the call.
        owned(unsafe { libc::open(name.as_ptr(), flags | more | libc::O_CLOEXEC) }.into())
    };
    match open(libc::O_NOATIME) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => open(0),
        done => done,
    }
}

fn status_of(x: &libc::statx) -> Status {
    let ns = |t: &libc::statx_timestamp| {
        t.tv_sec
            .wrapping_mul(1_000_000_000)
            .wrapping_add(t.tv_nsec.into())
    };
    Status {
        stamp: Stamp {
            dev: libc::makedev(x.stx_dev_major, x.stx_dev_minor),
            ino: x.stx_ino,
            size: x.stx_size,
            mtime: ns(&x.stx_mtime),
            ctime: ns(&x.stx_ctime),
        },
        mode: x.stx_mode.into(),
        uid: x.stx_uid,
        nlink: x.stx_nlink,
        blocks: x.stx_blocks,
        mount_root: x.stx_attributes & libc::STATX_ATTR_MOUNT_ROOT as u64 != 0,
    }
}

/// Status of `name` in a folder, no link followed, nothing asked of a server; with an empty name of the descriptor.
///
/// # Errors
/// The kernel's.
pub fn status(folder: RawFd, name: &CStr) -> io::Result<Status> {
    let mut x = MaybeUninit::<libc::statx>::uninit();
    let flags = libc::AT_SYMLINK_NOFOLLOW
        | libc::AT_NO_AUTOMOUNT
        | libc::AT_EMPTY_PATH
        | if name.is_empty() {
            0
        } else {
            libc::AT_STATX_DONT_SYNC
        };
    // SAFETY: a name that ends in zero; the kernel fills the structure when it returns 0.
    let done = unsafe {
        libc::statx(
            folder,
            name.as_ptr(),
            flags,
            libc::STATX_BASIC_STATS,
            x.as_mut_ptr(),
        )
    };
    check(done.into())?;
    // SAFETY: filled, as it has returned 0.
    Ok(status_of(unsafe { x.assume_init_ref() }))
}

/// Calls `each` with the kind (`DT_…`) and the name of each entry of an open folder.
///
/// # Errors
/// The kernel's.
pub fn entries(folder: RawFd, mut each: impl FnMut(u8, &CStr)) -> io::Result<()> {
    let mut buffer = vec![0u64; 8192];
    loop {
        let room = buffer.len() * 8;
        // SAFETY: the kernel writes at most `room` bytes to the buffer.
        let read =
            unsafe { libc::syscall(libc::SYS_getdents64, folder, buffer.as_mut_ptr(), room) };
        let read = check(read)? as usize;
        if read == 0 {
            return Ok(());
        }
        // SAFETY: the first `read` bytes of the buffer, which is longer.
        let bytes = unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), read) };
        let mut at = 0;
        // struct linux_dirent64: inode 8, offset 8, length 2, kind 1, then the name.
        while at + 19 <= bytes.len() {
            let length = u16::from_ne_bytes([bytes[at + 16], bytes[at + 17]]) as usize;
            let Some(name) = bytes.get(at + 19..at + length) else {
                return Err(io::Error::from_raw_os_error(libc::EIO));
            };
            if let Ok(name) = CStr::from_bytes_until_nul(name) {
                if name != c"." && name != c".." {
                    each(bytes[at + 18], name);
                }
            }
            at += length;
        }
    }
}

/// Reads from `at` until the buffer is full or the file ends; returns the bytes read.
///
/// # Errors
/// The kernel's.
pub fn read_at(fd: RawFd, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        let rest = &mut buffer[done..];
        // SAFETY: the kernel writes at most the length of `rest` to it.
        let read = unsafe {
            libc::pread(
                fd,
                rest.as_mut_ptr().cast(),
                rest.len(),
                (at + done as u64) as i64,
            )
        };
        match check(read as libc::c_long) {
            Ok(0) => break,
            Ok(read) => done += read as usize,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Writes all of the buffer at `at`.
///
/// # Errors
/// The kernel's.
pub fn write_at(fd: RawFd, buffer: &[u8], at: u64) -> io::Result<()> {
    let mut done = 0;
    while done < buffer.len() {
        let rest = &buffer[done..];
        // SAFETY: the kernel reads at most the length of `rest` from it.
        let wrote = unsafe {
            libc::pwrite(
                fd,
                rest.as_ptr().cast(),
                rest.len(),
                (at + done as u64) as i64,
            )
        };
        match check(wrote as libc::c_long) {
            Ok(wrote) => done += wrote as usize,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The next range at or after `at` that is no hole; `None` where only holes follow. A file system that cannot tell
/// says that all is data.
///
/// # Errors
/// The kernel's.
pub fn next_data(fd: RawFd, at: u64, size: u64) -> io::Result<Option<(u64, u64)>> {
    // SAFETY: no memory is involved.
    let low = match check(unsafe { libc::lseek(fd, at as i64, libc::SEEK_DATA) } as libc::c_long) {
        Ok(low) => low as u64,
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Ok(None),
        Err(error) => return Err(error),
    };
    // SAFETY: as above.
    let high =
        check(unsafe { libc::lseek(fd, low as i64, libc::SEEK_HOLE) } as libc::c_long)? as u64;
    Ok((low < size).then_some((low, high.min(size))))
}

#[repr(C)]
struct CacheRange {
    off: u64,
    len: u64,
}

const SYS_CACHESTAT: libc::c_long = 451;

/// Whether no page of the file is in the page cache; `false` where the kernel cannot tell (before 6.5).
pub fn is_cold(fd: RawFd) -> bool {
    let range = CacheRange { off: 0, len: 0 };
    // Pages cached, dirty, under writeback, evicted, evicted lately.
    let mut told = [1u64; 5];
    // SAFETY: two structures of the kernel's own sizes, alive during the call.
    let done =
        unsafe { libc::syscall(SYS_CACHESTAT, fd, &raw const range, told.as_mut_ptr(), 0u32) };
    done == 0 && told[0] == 0
}

/// The kernel may forget the cached pages of the file.
pub fn forget(fd: RawFd) {
    // SAFETY: no memory is involved; advice that fails changes nothing.
    unsafe { libc::posix_fadvise(fd, 0, 0, libc::POSIX_FADV_DONTNEED) };
}

/// The kernel may read a range ahead.
pub fn will_need(fd: RawFd, at: u64, len: u64) {
    // SAFETY: as above.
    unsafe { libc::posix_fadvise(fd, at as i64, len as i64, libc::POSIX_FADV_WILLNEED) };
}

/// One extent, as `FIEMAP` tells it, in bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins in the file.
    pub logical: u64,
    /// Where it begins on the device; of a compressed one, where that begins.
    pub physical: u64,
    /// Bytes of the file.
    pub length: u64,
    reserved64: [u64; 2],
    /// `FIEMAP_EXTENT_…`.
    pub flags: u32,
    reserved32: [u32; 3],
}

/// Extent flags.
pub const LAST: u32 = 0x1;
/// Where it is on the device is not known.
pub const UNKNOWN: u32 = 0x2;
/// Not on the device yet.
pub const DELALLOC: u32 = 0x4;
/// Compressed or encrypted.
pub const ENCODED: u32 = 0x8;
/// Lies among metadata.
pub const INLINE: u32 = 0x200;
/// Allocated, never written.
pub const UNWRITTEN: u32 = 0x800;
/// Others refer to it too.
pub const SHARED: u32 = 0x2000;

const EXTENTS_AT_ONCE: usize = 128;

#[repr(C)]
struct Fiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
    extents: [Extent; EXTENTS_AT_ONCE],
}

const FS_IOC_FIEMAP: u32 = 0xC020_660B;

/// The extents that a range of a file has something of, in order.
///
/// # Errors
/// The kernel's; `EOPNOTSUPP` where the file system cannot tell.
pub fn extents(fd: RawFd, low: u64, high: u64) -> io::Result<Vec<Extent>> {
    let mut found = Vec::new();
    let mut at = low;
    while at < high {
        let mut map = Fiemap {
            start: at,
            length: high - at,
            flags: 0,
            mapped: 0,
            count: EXTENTS_AT_ONCE as u32,
            reserved: 0,
            extents: [Extent::default(); EXTENTS_AT_ONCE],
        };
        // SAFETY: the kernel fills at most `count` extents, for which there is room.
        check(unsafe { libc::ioctl(fd, FS_IOC_FIEMAP as _, &raw mut map) }.into())?;
        let got = &map.extents[..(map.mapped as usize).min(EXTENTS_AT_ONCE)];
        found.extend_from_slice(got);
        match got.last() {
            Some(last) if last.flags & LAST == 0 && last.logical + last.length > at => {
                at = last.logical + last.length;
            }
            _ => break,
        }
    }
    Ok(found)
}

#[repr(C)]
struct Dedupe {
    src_offset: u64,
    src_length: u64,
    count: u16,
    reserved1: u16,
    reserved2: u32,
    dest_fd: i64,
    dest_offset: u64,
    bytes: u64,
    status: i32,
    reserved: u32,
}

const FIDEDUPERANGE: u32 = 0xC018_9436;

/// What the kernel says of one range that was to be shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shared {
    /// So many bytes are shared now.
    Bytes(u64),
    /// The bytes are not equal.
    Differs,
}

/// Makes a range of one file refer to the extents of another, if the kernel finds all bytes equal.
///
/// # Errors
/// The kernel's, of either file.
pub fn dedupe(src: RawFd, src_at: u64, dst: RawFd, dst_at: u64, len: u64) -> io::Result<Shared> {
    let mut arg = Dedupe {
        src_offset: src_at,
        src_length: len,
        count: 1,
        reserved1: 0,
        reserved2: 0,
        dest_fd: dst.into(),
        dest_offset: dst_at,
        bytes: 0,
        status: 0,
        reserved: 0,
    };
    // SAFETY: a structure with one destination, as `count` says, alive during the call.
    check(unsafe { libc::ioctl(src, FIDEDUPERANGE as _, &raw mut arg) }.into())?;
    match arg.status {
        0 => Ok(Shared::Bytes(arg.bytes)),
        1 => Ok(Shared::Differs),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}

/// Puts the calling thread into the idle class of disk schedulers.
pub fn idle_io() {
    const IOPRIO_WHO_PROCESS: i32 = 1;
    const IDLE: i32 = 3 << 13;
    // SAFETY: no memory is involved; without the right to it nothing changes.
    unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, IDLE) };
}

/// CPU time of the process so far, in seconds.
pub fn cpu_seconds() -> f64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel fills the structure.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
