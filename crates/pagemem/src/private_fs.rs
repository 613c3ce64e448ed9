//! A memory file that can be written through one descriptor, and through nothing that is ever made of another.
//!
//! The file lies on a file system of its own, which is in no folder and in no list of mounts. It is opened for writing
//! through one mount of that, for reading through a second one, which is read-only. What is opened through the second can
//! neither be opened for writing anew (by `/proc/PID/fd`, `/proc/PID/map_files`) nor be given other rights or another
//! size, whoever owns the file and whatever that user may do otherwise: the kernel says `EROFS`. A seal of a `memfd` that
//! forbids later writers (`F_SEAL_FUTURE_WRITE`) forbids punching holes, too, that is, ever giving a frame back.
//!
//! Mounting asks for the right to administer a mount namespace. Who has none makes a user namespace, in which it has; so
//! all of this is done by a short-lived child, which leaves nothing but the two descriptors.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use crate::passing::{receive_descriptors, send_descriptors};
use crate::sys::check;

/// Two descriptors of one file.
#[derive(Debug)]
pub struct Pair {
    /// The only one that writes.
    pub writable: OwnedFd,
    /// The one to hand out.
    pub read_only: OwnedFd,
    /// Whether the file's memory is never lent to swap, so that no page of it is taken from a process that maps it. Only
    /// root may have that, from Linux 6.4 on.
    pub lasting: bool,
}

const FSCONFIG_SET_FLAG: u32 = 0;
const FSCONFIG_SET_STRING: u32 = 1;
const FSCONFIG_CMD_CREATE: u32 = 6;
const CLOEXEC: u32 = 1;
const MOUNT_ATTR_RDONLY: u64 = 1;
const MOUNT_ATTR_NOSUID: u64 = 2;
const MOUNT_ATTR_NODEV: u64 = 4;
const OPEN_TREE_CLONE: u32 = 1;
const MOVE_MOUNT_F_EMPTY_PATH: u32 = 4;

/// How the child that makes the file says that its memory is never lent to swap. No errno is as large.
const LASTING: i32 = 255;

#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

/// Makes an empty file of `bytes` bytes, with no permission bits and no name left. An error where this user may mount
/// nothing, not even in a user namespace of its own. `keep`: never to be lent to swap, where that can be had.
pub fn make(name: &CStr, bytes: u64, keep: bool) -> io::Result<Pair> {
    let mut ends = [0; 2];
    // SAFETY: the kernel writes two descriptors into a live array of two.
    check(i64::from(unsafe {
        libc::socketpair(
            libc::AF_UNIX,
            libc::SOCK_DGRAM | libc::SOCK_CLOEXEC,
            0,
            ends.as_mut_ptr(),
        )
    }))?;
    // SAFETY: two fresh descriptors that nothing else owns.
    let [ours, theirs] = ends.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    // Both are made here: the child is to allocate nothing, for this process may have more threads.
    let maps = [geteuid(), getegid()].map(|id| format!("0 {id} 1"));
    // SAFETY: the child makes system calls only, and ends without running anything of ours.
    let child = check(i64::from(unsafe { libc::fork() }))? as i32;
    if child == 0 {
        let made = in_child(name, bytes, keep, &maps).and_then(|pair| {
            send_descriptors(
                &theirs,
                &[pair.read_only.as_raw_fd(), pair.writable.as_raw_fd()],
            )
            .map(|()| if pair.lasting { LASTING } else { 0 })
        });
        let code = made.unwrap_or_else(|e| e.raw_os_error().unwrap_or(libc::EIO));
        // SAFETY: ends this process at once.
        unsafe { libc::_exit(code) };
    }
    drop(theirs);
    let mut status = 0;
    // SAFETY: writes one int into a live one; the child is ours and reaped by nobody else.
    while unsafe { libc::waitpid(child, &mut status, 0) } < 0
        && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
    {}
    match libc::WEXITSTATUS(status) {
        code @ (0 | LASTING) if libc::WIFEXITED(status) => {
            let [read_only, writable] = receive_descriptors(&ours)?;
            Ok(Pair {
                writable,
                read_only,
                lasting: code == LASTING,
            })
        }
        e if libc::WIFEXITED(status) => Err(io::Error::from_raw_os_error(e)),
        _ => Err(io::Error::from_raw_os_error(libc::EIO)),
    }
}

fn geteuid() -> u32 {
    // SAFETY: no pointers; cannot fail.
    unsafe { libc::geteuid() }
}

fn getegid() -> u32 {
    // SAFETY: no pointers; cannot fail.
    unsafe { libc::getegid() }
}

/// What the child does. Allocates nothing, unless it fails.
fn in_child(name: &CStr, bytes: u64, keep: bool, maps: &[String; 2]) -> io::Result<Pair> {
    enter_namespaces(maps)?;
    // SAFETY: plain calls with valid C strings and live structures of the stated sizes; descriptors returned are fresh.
    unsafe {
        let context = call(
            libc::SYS_fsopen,
            &[c"tmpfs".as_ptr() as u64, CLOEXEC.into()],
        )?;
        let tell = |kind: u32, key: &CStr, value: u64| {
            let key = key.as_ptr() as u64;
            call(
                libc::SYS_fsconfig,
                &[context as u64, kind.into(), key, value, 0],
            )
        };
        let set = |key: &CStr, value: &CStr| tell(FSCONFIG_SET_STRING, key, value.as_ptr() as u64);
        set(c"mode", c"0700")?;
        set(c"size", c"0")?; // no limit of its own
                             // Huge pages would tie 512 frames' lives together. A kernel without them knows no such option.
        let _ = set(c"huge", c"never");
        let lasting = keep && tell(FSCONFIG_SET_FLAG, c"noswap", 0).is_ok();
        call(
            libc::SYS_fsconfig,
            &[context as u64, FSCONFIG_CMD_CREATE.into(), 0, 0, 0],
        )?;
        let plain = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV; // programs may have their memory executable
        let mount = call(libc::SYS_fsmount, &[context as u64, CLOEXEC.into(), plain])?;
        let writable = check(i64::from(libc::openat(
            mount,
            name.as_ptr(),
            libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | libc::O_CLOEXEC,
            0o400,
        )))? as RawFd;
        let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC as u32 | libc::AT_EMPTY_PATH as u32;
        let nothing = c"".as_ptr() as u64;
        let copy = || call(libc::SYS_open_tree, &[mount as u64, nothing, flags.into()]);
        let second = copy().or_else(|_| {
            // Before Linux 6.15 only what is mounted somewhere can be copied: here where nobody sees it.
            let root = c"/".as_ptr() as u64;
            let to = [
                mount as u64,
                nothing,
                libc::AT_FDCWD as u64,
                root,
                MOVE_MOUNT_F_EMPTY_PATH.into(),
            ];
            call(libc::SYS_move_mount, &to)?;
            copy()
        })?;
        let attributes = MountAttr {
            set: plain | MOUNT_ATTR_RDONLY,
            clear: 0,
            propagation: 0,
            userns: 0,
        };
        call(
            libc::SYS_mount_setattr,
            &[
                second as u64,
                nothing,
                libc::AT_EMPTY_PATH as u64,
                (&raw const attributes) as u64,
                std::mem::size_of::<MountAttr>() as u64,
            ],
        )?;
        let read_only = check(i64::from(libc::openat(
            second,
            name.as_ptr(),
            libc::O_RDONLY | libc::O_CLOEXEC,
        )))? as RawFd;
        check(i64::from(libc::unlinkat(mount, name.as_ptr(), 0)))?;
        check(i64::from(libc::fchmod(writable, 0)))?;
        check(i64::from(libc::ftruncate(writable, bytes as i64)))?;
        // That nothing can be made of the second is what all rests on.
        let refused = libc::fchmod(read_only, 0o600);
        if refused == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::EROFS) {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        Ok(Pair {
            writable: OwnedFd::from_raw_fd(writable),
            read_only: OwnedFd::from_raw_fd(read_only),
            lasting,
        })
    }
}

/// Gives this process a mount namespace in which it may mount, where need be by a user namespace.
fn enter_namespaces(maps: &[String; 2]) -> io::Result<()> {
    // SAFETY: no pointers but valid C strings; only this process, which has one thread, is changed.
    unsafe {
        if libc::unshare(libc::CLONE_NEWNS) != 0 {
            // The files of an undumpable process are root's. Nothing that is worth hiding is there yet.
            libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0);
            check(i64::from(libc::unshare(
                libc::CLONE_NEWUSER | libc::CLONE_NEWNS,
            )))?;
            // Files are made by an id that the file system knows.
            write(c"/proc/self/uid_map", maps[0].as_bytes())?;
            write(c"/proc/self/setgroups", b"deny")?;
            write(c"/proc/self/gid_map", maps[1].as_bytes())?;
        }
        check(i64::from(libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0)))?;
        check(i64::from(libc::mount(
            std::ptr::null(),
            c"/".as_ptr(),
            std::ptr::null(),
            libc::MS_REC | libc::MS_PRIVATE,
            std::ptr::null(),
        )))
        .map(drop)
    }
}

fn write(path: &CStr, text: &[u8]) -> io::Result<()> {
    // SAFETY: a valid C string, and a live slice of the stated length; the descriptor is closed by its owner.
    unsafe {
        let fd = check(i64::from(libc::open(
            path.as_ptr(),
            libc::O_WRONLY | libc::O_CLOEXEC,
        )))?;
        let fd = OwnedFd::from_raw_fd(fd as RawFd);
        check(libc::write(fd.as_raw_fd(), text.as_ptr().cast(), text.len()) as i64).map(drop)
    }
}

/// A system call by number that returns a descriptor or nothing.
///
/// # Safety
///
/// The arguments must be what the call asks for, and what they point to must live and have its size.
unsafe fn call(number: libc::c_long, args: &[u64]) -> io::Result<RawFd> {
    let a = |i: usize| args.get(i).copied().unwrap_or(0);
    // SAFETY: by the contract of this function.
    let r = unsafe { libc::syscall(number, a(0), a(1), a(2), a(3), a(4)) };
    Ok(check(r)? as RawFd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn what_is_read_through_one_descriptor_is_written_through_the_other_alone() {
        let pair = match make(c"some", 1 << 20, true) {
            Ok(pair) => pair,
            Err(e) => return eprintln!("skipped: this user may mount nothing: {e}"),
        };
        let (writer, reader) = (
            std::fs::File::from(pair.writable),
            std::fs::File::from(pair.read_only),
        );
        writer.write_all_at(b"frames", 4096).expect("written");
        let mut got = [0; 6];
        reader.read_exact_at(&mut got, 4096).expect("read");
        assert_eq!(&got, b"frames");
        assert_eq!(reader.metadata().expect("its size").len(), 1 << 20);
        let refused = |e: io::Error| assert_eq!(e.raw_os_error(), Some(libc::EROFS));
        let path = format!("/proc/self/fd/{}", reader.as_raw_fd());
        let readable = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        refused(std::fs::set_permissions(&path, readable).expect_err("other rights"));
        let again = std::fs::OpenOptions::new().write(true).open(&path);
        if geteuid() == 0 {
            refused(again.expect_err("a second writer"));
        } else {
            again.expect_err("a second writer");
        }
        refused(reader.set_len(0).map_or_else(
            |e| match e.raw_os_error() {
                Some(libc::EINVAL) => io::Error::from_raw_os_error(libc::EROFS), // not open for writing
                _ => e,
            },
            |()| io::Error::from_raw_os_error(0),
        ));
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        assert!(!mounts.contains("/some"), "{mounts}");
    }
}
