//! Threads that the kernel has put into a process to work there: for io_uring (`iou-wrk-…`, `iou-sqp-…`) and vhost.
//!
//! They are in the list of the process's threads and use its memory, but execute no instruction of the program. One that is
//! told to run injected code never does; one that is interrupted ends the request that it is at with `EINTR`. So they are
//! neither stopped nor hired. What they write is nobody's to hold back: nothing is exchanged where there are some.

use crate::sys::Stat;

/// `PF_IO_WORKER` and `PF_USER_WORKER`, as `/proc/PID/task/TID/stat` has them.
const WORKER_FLAGS: u64 = 0x10 | 0x4000;

/// Whether thread `tid` of process `pid` is one of the kernel's. Costs a system call for most threads of the program's, a
/// file of `/proc` for those that no C library has begun.
pub fn is_worker(pid: i32, tid: i32) -> bool {
    if tid == pid || has_robust_list(tid) {
        return false;
    }
    // The seventh number behind the name.
    let flags = Stat::of_thread(pid, tid).and_then(|s| s.number::<u64>(6));
    flags.is_some_and(|f| f & WORKER_FLAGS != 0)
}

/// Whether the thread has told the kernel of a list of robust mutexes. The C library does so for every thread that it
/// begins; only a thread itself can, so none of the kernel's has.
fn has_robust_list(tid: i32) -> bool {
    let (mut head, mut length) = (0usize, 0usize);
    // SAFETY: the kernel writes one pointer and one size, each into a live word.
    let r = unsafe { libc::syscall(libc::SYS_get_robust_list, tid, &mut head, &mut length) };
    r == 0 && head != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_of_the_library_are_none_of_the_kernels() {
        let me = std::process::id() as i32;
        let (end, wait) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || wait.recv());
        for tid in crate::sys::numbers_in("/proc/self/task") {
            assert!(!is_worker(me, tid));
        }
        drop(end);
        assert!(other.join().is_ok());
    }
}
