//! Whether the kernel or a device may write a process's memory behind its page tables, told by what it has open and mapped.
//!
//! Whoever has pinned a page writes to that page wherever the page tables lead by now: a ring of io_uring in memory of the
//! program's own, packets of an AF_XDP socket, buffers registered with a network card, a GPU or a camera. Nothing in
//! `/proc` tells of such a page (`VmPin` counts some of them only), but each is registered through a descriptor. So the
//! kinds of descriptors are told apart, and **what is not known to be harmless counts as dangerous**: harmless is what
//! reads and writes memory in system calls of the program's own threads only, or has memory of the kernel's.
//!
//! Memory of a descriptor that is held by another process alone, or by none (a ring registered with
//! `IORING_SETUP_REGISTERED_FD_ONLY`), is not found.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use crate::listing::names_in;
use crate::processes;
use crate::sharers::{same, What};
use crate::sys::{self, check, Maps};

/// Files without a name that are harmless, by how their names begin after `anon_inode:`.
const FILES: &[&[u8]] = &[
    b"[eventfd]",
    b"[eventpoll]",
    b"[timerfd]",
    b"[signalfd]",
    b"inotify",
    b"[fanotify]",
    b"[pidfd]",
    b"[userfaultfd]",
    b"[perf_event]",
    b"bpf-map",
    b"bpf-prog",
    b"bpf_link",
    b"bpf-link",
    b"bpf_iter",
    b"btf",
    b"kvm-vm", // the kernel is told when pages of a guest move, and follows
    b"kvm-vcpu",
    b"[fscontext]",
    b"[landlock-ruleset]",
    b"seccomp notify",
];

/// Kinds of files that have a file system of their own, by how the kernel writes their names.
const NAMED: &[&[u8]] = &[
    b"pipe:[",
    b"pidfd:[",
    b"net:[",
    b"mnt:[",
    b"uts:[",
    b"ipc:[",
    b"pid:[",
    b"user:[",
    b"cgroup:[",
    b"time:[",
];

/// Protocols of sockets that copy what they send and receive, as `system.sockprotoname` tells them.
const PROTOCOLS: &[&[u8]] = &[
    b"UNIX",
    b"UNIX-STREAM",
    b"TCP",
    b"TCPv6",
    b"UDP",
    b"UDPv6",
    b"UDP-Lite",
    b"UDPLITEv6",
    b"RAW",
    b"RAWv6",
    b"PING",
    b"PINGv6",
    b"MPTCP",
    b"MPTCPv6",
    b"SCTP",
    b"SCTPv6",
    b"NETLINK",
    b"PACKET",
    b"AF_VSOCK",
    b"ALG",
    b"KEY",
    b"CAN_RAW",
    b"CAN_BCM",
    b"CAN_ISOTP",
    b"HCI",
    b"L2CAP",
    b"RFCOMM",
    b"SCO",
    b"BNEP",
    b"HIDP",
    b"ISO",
];

/// Character devices that are harmless: first and last major number, first and last minor number.
const DEVICES: &[(u32, u32, u32, u32)] = &[
    (1, 1, 3, 3),           // null
    (1, 1, 5, 5),           // zero
    (1, 1, 7, 9),           // full, random, urandom
    (1, 1, 11, 11),         // kmsg
    (4, 5, 0, ALL),         // consoles and serial lines; tty, ptmx
    (7, 7, 0, ALL),         // memory of consoles
    (MISC, MISC, 1, 1),     // psaux
    (MISC, MISC, 130, 130), // watchdog
    (MISC, MISC, 135, 135), // rtc
    (MISC, MISC, 183, 183), // hwrng
    (MISC, MISC, 200, 200), // tun
    (MISC, MISC, 223, 223), // uinput
    (MISC, MISC, 228, 229), // hpet, fuse
    (MISC, MISC, 232, 232), // kvm
    (MISC, MISC, 234, 237), // btrfs-control, autofs, device-mapper, loop-control
    (MISC, MISC, 242, 242), // rfkill
    (13, 13, 0, ALL),       // input
    (116, 116, 0, ALL),     // sound: its buffers are the kernel's
    (128, 143, 0, ALL),     // pseudo terminals
    (166, 166, 0, ALL),     // serial lines over USB
    (188, 188, 0, ALL),
    (202, 203, 0, ALL), // registers of processors
];
const ALL: u32 = u32::MAX;
const MISC: u32 = 10;

/// Those whose numbers are given out when their driver comes, by their names in `/proc/misc` and `/proc/devices`.
const MISC_BY_NAME: &[&str] = &[
    "userfaultfd",
    "vga_arbiter",
    "cpu_dma_latency",
    "vsock",
    "ntsync",
];
const MAJOR_BY_NAME: &[&str] = &["rtc", "ptp", "pps", "watchdog", "hidraw", "hvc"];

/// Folders of `/dev` that hold no devices.
const NO_DEVICES: &[&[u8]] = &[
    b"/dev/shm/",
    b"/dev/hugepages",
    b"/dev/mqueue/",
    b"/dev/zero",
];

/// Which file systems may not tell about a file of theirs, not having any device among them.
const SILENT: &[&str] = &["fuse", "nfs", "cifs", "smb", "9p", "ceph"];

/// A table of more descriptors than this is not looked at: that may be done while others wait for us.
const MANY: usize = 1 << 14;

/// What an extended attribute of a socket is called that holds the name of its protocol.
const PROTOCOL: &CStr = c"system.sockprotoname";

/// Tells kinds apart for one process, asked again and again.
#[derive(Debug, Default)]
pub struct Kinds {
    /// Inodes of its sockets that were found harmless when last asked. A socket keeps its number for life.
    sockets: HashSet<u64>,
}

impl Kinds {
    /// What process `pid`, whose mappings are `maps`, has open or mapped that lets its memory be written behind its page
    /// tables; None if there is nothing of the kind. An error where that cannot be told.
    ///
    /// Cost: one system call for each descriptor, two for a file and for a socket not seen before, some 2 µs each; one for
    /// each shared writable mapping of a file; one for each thread.
    pub fn behind(&mut self, pid: i32, maps: &mut Maps) -> io::Result<Option<String>> {
        let known = std::mem::take(&mut self.sockets);
        for tid in tables(pid)? {
            if let Some(what) = self.of_table(pid, tid, &known)? {
                return Ok(Some(what));
            }
        }
        self.mapped(maps)
    }

    /// The same of mappings alone. Those of sockets are judged by what was seen of the descriptors.
    pub fn mapped(&self, maps: &mut Maps) -> io::Result<Option<String>> {
        let mut found = None;
        maps.shared_writable(|name| {
            let harmless = match name.strip_prefix(b"socket:[") {
                Some(rest) => inode(rest).is_some_and(|i| self.sockets.contains(&i)),
                None => !dangerous_mapping(name),
            };
            if !harmless {
                found = Some(format!("a mapping of {}", text(name)));
            }
            !harmless
        })?;
        Ok(found)
    }

    /// The first descriptor of a thread's table that is not harmless. `known`: sockets that are.
    fn of_table(&mut self, pid: i32, tid: i32, known: &HashSet<u64>) -> io::Result<Option<String>> {
        let path = format!("/proc/{pid}/task/{tid}/fd");
        let table = match File::open(&path) {
            // The thread has ended, and its table with it.
            Err(e) if gone(&e) => return Ok(None),
            opened => opened?,
        };
        let mut name = vec![0u8; libc::PATH_MAX as usize];
        let numbers = names_in(&table)?;
        if numbers.len() > MANY {
            return Ok(Some(format!("more than {MANY} descriptors")));
        }
        for fd in numbers {
            let link = CString::new(fd.to_string())?;
            let n = match read_link(table.as_raw_fd(), &link, &mut name) {
                Err(e) if gone(&e) => continue, // closed meanwhile
                read => read?,
            };
            let name = &name[..n];
            let harmless = if let Some(rest) = name.strip_prefix(b"socket:[") {
                let socket = inode(rest);
                if !socket.is_some_and(|s| known.contains(&s)) {
                    let protocol = protocol(&format!("{path}/{fd}"));
                    if !PROTOCOLS.contains(&protocol.as_slice()) {
                        return Ok(Some(format!("a socket of protocol {}", text(&protocol))));
                    }
                }
                self.sockets.extend(socket);
                true
            } else if let Some(kind) = name.strip_prefix(b"anon_inode:") {
                begins(kind, FILES)
            } else {
                begins(name, NAMED) || harmless_file(table.as_raw_fd(), &link, name, &path)
            };
            if !harmless {
                return Ok(Some(text(name)));
            }
        }
        Ok(None)
    }
}

/// Threads of a process that between them have all its tables of descriptors.
fn tables(pid: i32) -> io::Result<Vec<i32>> {
    let first = processes::memory_tid(pid);
    let mut threads = sys::numbers_in(&format!("/proc/{pid}/task"));
    if threads.is_empty() {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    threads.retain(|&tid| tid == first || !same(What::Descriptors, first, tid));
    Ok(threads)
}

/// Whether a mapping, shared and writable, is one of a device or of a ring.
fn dangerous_mapping(name: &[u8]) -> bool {
    if let Some(kind) = name.strip_prefix(b"anon_inode:") {
        return !begins(kind, FILES);
    }
    // Registers of a card that are mapped lie in /sys.
    name.starts_with(b"/[aio]")
        || name.starts_with(b"/dmabuf:")
        || name.starts_with(b"/sys/")
        || name.starts_with(b"/dev/")
            && !begins(name, NO_DEVICES)
            && !name.starts_with(b"/dev/snd/")
}

/// The protocol of the socket behind a link of `/proc`; empty where that cannot be told.
fn protocol(link: &str) -> Vec<u8> {
    let mut name = vec![0u8; 64];
    let Ok(link) = CString::new(link) else {
        return Vec::new();
    };
    // SAFETY: both names end with a zero; the kernel writes at most `name.len()` bytes into a live buffer of that size.
    let n = check(unsafe {
        libc::getxattr(
            link.as_ptr(),
            PROTOCOL.as_ptr(),
            name.as_mut_ptr().cast(),
            name.len(),
        ) as i64
    });
    name.truncate(n.map_or(0, |n| n as usize));
    name.retain(|&b| b != 0);
    name
}

/// Whether what has a path is no device, or a harmless one. The file system is asked nothing that it would have to ask
/// others: a server that does not answer must not hold us up.
fn harmless_file(table: RawFd, link: &CStr, name: &[u8], path: &str) -> bool {
    if name.starts_with(b"/memfd:") {
        return true;
    }
    if name.starts_with(b"/dmabuf:") {
        return false;
    }
    // SAFETY: integers only; zero is a valid value for each.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the name ends with a zero, the kernel writes one `statx` into a live one.
    let asked = check(i64::from(unsafe {
        libc::statx(
            table,
            link.as_ptr(),
            libc::AT_STATX_DONT_SYNC,
            libc::STATX_TYPE,
            &mut found,
        )
    }));
    if asked.is_err() {
        return asked.is_err_and(|e| gone(&e)) || silent(path, link);
    }
    match u32::from(found.stx_mode) & libc::S_IFMT {
        libc::S_IFCHR => harmless_device(found.stx_rdev_major, found.stx_rdev_minor),
        libc::S_IFREG
        | libc::S_IFDIR
        | libc::S_IFLNK
        | libc::S_IFBLK
        | libc::S_IFIFO
        | libc::S_IFSOCK => true,
        _ => false,
    }
}

fn harmless_device(major: u32, minor: u32) -> bool {
    let in_list = |&(from, to, first, last): &(u32, u32, u32, u32)| {
        (from..=to).contains(&major) && (first..=last).contains(&minor)
    };
    let (list, number, names) = if major == MISC {
        ("/proc/misc", minor, MISC_BY_NAME)
    } else {
        ("/proc/devices", major, MAJOR_BY_NAME)
    };
    DEVICES.iter().any(in_list) || named(list, number).is_some_and(|n| names.contains(&n.as_str()))
}

/// The name beside a number in a list of the kernel's; of block devices, which come later, none is told.
fn named(list: &str, number: u32) -> Option<String> {
    let text = std::fs::read_to_string(list).ok()?;
    let characters = text.lines().take_while(|l| !l.starts_with("Block"));
    characters
        .filter_map(|l| l.trim_start().split_once(' '))
        .find(|(n, _)| n.parse() == Ok(number))
        .map(|(_, name)| name.trim().to_owned())
}

/// Whether a file that cannot be asked about is on a file system whose server need not answer us, as one that a user has
/// mounted need not answer root.
fn silent(path: &str, link: &CStr) -> bool {
    let its = |mounted: &str| SILENT.iter().any(|kind| mounted.starts_with(kind));
    let kind = || {
        let thread = path.strip_suffix("/fd")?;
        let info =
            std::fs::read_to_string(format!("{thread}/fdinfo/{}", link.to_str().ok()?)).ok()?;
        let mount = info
            .lines()
            .find_map(|l| l.strip_prefix("mnt_id:"))?
            .trim()
            .to_owned();
        let mounts = std::fs::read_to_string(format!("{thread}/mountinfo")).ok()?;
        let line = mounts
            .lines()
            .find(|l| l.split(' ').next() == Some(&mount))?;
        line.split_once(" - ").map(|(_, rest)| rest.to_owned())
    };
    kind().is_some_and(|k| its(&k))
}

fn read_link(table: RawFd, link: &CStr, name: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the link's name ends with a zero; the kernel writes at most `name.len()` bytes into a live buffer of that size.
    let n = check(unsafe {
        libc::readlinkat(table, link.as_ptr(), name.as_mut_ptr().cast(), name.len()) as i64
    })?;
    Ok(n as usize)
}

fn gone(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}

fn begins(name: &[u8], with: &[&[u8]]) -> bool {
    with.iter().any(|w| name.starts_with(w))
}

/// The number in `NUMBER]`.
fn inode(rest: &[u8]) -> Option<u64> {
    std::str::from_utf8(rest.strip_suffix(b"]")?)
        .ok()?
        .parse()
        .ok()
}

fn text(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}
