//! A process that its user's other processes may not look into, but for what it maps.
//!
//! Whoever may look into the guardian (`/proc/PID/fd`, `pidfd_getfd`) gets its descriptors, that of the pool among them.
//! Made undumpable it is closed to all without `CAP_SYS_PTRACE`. But engines of the same user must know what every
//! process maps before they free a frame. So it hands a descriptor of its `/proc/PID/maps`, opened before, to who asks at
//! a socket with its id in the name. Nobody can deceive with such a descriptor: its path names the process, and whose
//! memory it shows was settled when it was opened.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::Duration;

use crate::passing::send_descriptors;

/// The least time between two answers, so that nobody can keep this process busy.
const APART: Duration = Duration::from_millis(5);

/// Closes this process to others.
pub fn hide() -> io::Result<()> {
    let maps = File::open("/proc/self/maps")?;
    // SAFETY: no pointers.
    crate::sys::check(i64::from(unsafe {
        libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0)
    }))?;
    let name = format!("pageone-maps-{}", std::process::id());
    // Without it (no network namespace that is shared, a name that is taken) other engines free no frames meanwhile.
    let listener = SocketAddr::from_abstract_name(name).and_then(|a| UnixListener::bind_addr(&a));
    if let Ok(listener) = listener {
        crate::sys::quiet_thread("maps", move || loop {
            if let Ok((stream, _)) = listener.accept() {
                if crate::sys::is_of_our_user(&stream) {
                    let _ = send_descriptors(&stream, &[maps.as_raw_fd()]);
                }
            }
            std::thread::sleep(APART);
        })?;
    }
    Ok(())
}
