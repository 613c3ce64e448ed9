use super::*;

/// A child that gives birth when it is told to: `clone` flags for the next, or a thread.
struct Parent {
    pid: i32,
    asks: std::os::unix::net::UnixStream,
}

const A_THREAD: i32 = libc::CLONE_VM | libc::CLONE_SIGHAND | libc::CLONE_THREAD;

extern "C" fn end(_: *mut libc::c_void) -> i32 {
    // SAFETY: ends this thread alone, or the process that it is.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
    0
}

extern "C" fn rest(_: *mut libc::c_void) -> i32 {
    loop {
        // SAFETY: no pointers.
        unsafe { libc::pause() };
    }
}

/// Gives birth as it is told to, in this process or its child; never returns.
fn live(asks: &std::os::unix::net::UnixStream) -> ! {
    use std::io::{Read, Write};
    let mut word = [0u8; 8];
    // SAFETY: stacks are each user's own and never freed.
    unsafe {
        while (&*asks).read_exact(&mut word).is_ok() {
            let flags = i32::from_le_bytes([word[0], word[1], word[2], word[3]]);
            let rests = word[4] == 1;
            if word[5] == 1 {
                let stack = Box::leak(vec![0u8; 1 << 14].into_boxed_slice());
                let top = stack.as_mut_ptr().add(stack.len() - 64);
                let body = if rests { rest } else { end };
                let born = libc::clone(body, top.cast(), flags, std::ptr::null_mut());
                if born > 0 && flags & libc::CLONE_THREAD == 0 {
                    libc::waitpid(born, std::ptr::null_mut(), libc::__WALL);
                }
            }
            if word[6] == 1 {
                assert_eq!(libc::prctl(libc::PR_TASK_PERF_EVENTS_DISABLE), 0);
            }
            let _ = (&*asks).write_all(&[1]);
        }
        libc::_exit(0)
    }
}

impl Parent {
    fn new() -> Self {
        let (asks, its) = std::os::unix::net::UnixStream::pair().expect("a pair of sockets");
        // SAFETY: the child makes calls of the kernel's, and allocates, which the C library allows after a fork.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            drop(asks);
            live(&its);
        }
        Self { pid, asks }
    }

    fn ask(&self, flags: i32, rests: bool, gives_birth: bool) {
        let [a, b, c, d] = flags.to_le_bytes();
        self.send([a, b, c, d, u8::from(rests), u8::from(gives_birth), 0, 0]);
    }

    fn disables_events(&self) {
        self.send([0, 0, 0, 0, 0, 0, 1, 0]);
    }

    fn send(&self, word: [u8; 8]) {
        use std::io::{Read, Write};
        (&self.asks).write_all(&word).expect("a living child");
        (&self.asks).read_exact(&mut [0]).expect("its answer");
    }

    fn gives_birth(&self, flags: i32) {
        self.ask(flags, false, true);
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        // SAFETY: ends and reaps the child made above.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, std::ptr::null_mut(), 0);
        }
    }
}

/// A process whose births are noted, where the kernel notes them for this user.
fn noted() -> Option<(Parent, Newcomers)> {
    let parent = Parent::new();
    let newcomers = Newcomers::of(parent.pid);
    // SAFETY: no pointers.
    let root = unsafe { libc::geteuid() } == 0;
    if newcomers.is_none() {
        println!("no births are noted for this user");
        assert!(!root || Noted::new(parent.pid).is_err());
    }
    Some((parent, newcomers?))
}

#[test]
fn each_birth_of_a_process_is_noted_in_whatever_way_and_nothing_else_it_does() {
    let Some((parent, mut newcomers)) = noted() else {
        return;
    };
    let with = [
        libc::SIGCHLD,
        libc::SIGCHLD | libc::CLONE_VM,
        libc::SIGCHLD | libc::CLONE_VM | libc::CLONE_VFORK,
        libc::SIGCHLD | libc::CLONE_VM | libc::CLONE_FILES,
        A_THREAD,
    ];
    for flags in with {
        parent.ask(0, false, false);
        drop(Parent::new()); // another's child is none of its
        assert!(newcomers.are_none(), "{flags:x}");
        parent.gives_birth(flags);
        assert!(!newcomers.are_none(), "{flags:x}");
        while processes::thread_count(parent.pid).expect("its threads") > 1 {
            std::thread::yield_now();
        }
        assert!(newcomers.are_known(parent.pid));
        assert!(newcomers.are_none(), "{flags:x}");
    }
}

#[test]
fn a_birth_to_be_anothers_child_is_noted_with_who_gave_it() {
    let Some((parent, newcomers)) = noted() else {
        return;
    };
    parent.gives_birth(libc::CLONE_PARENT | libc::CLONE_VM | libc::SIGCHLD);
    assert!(!newcomers.are_none());
}

#[test]
fn a_process_cannot_keep_its_births_from_being_noted() {
    let Some((parent, newcomers)) = noted() else {
        return;
    };
    // It is said to end all counters that are on the caller, whoever made them; it ends those that the caller made.
    parent.disables_events();
    assert!(newcomers.are_none());
    parent.gives_birth(libc::CLONE_VM | libc::SIGCHLD);
    assert!(!newcomers.are_none());
}

#[test]
fn one_birth_is_noted_after_more_than_there_is_room_for() {
    let Some((parent, mut newcomers)) = noted() else {
        return;
    };
    for _ in 0..300 {
        parent.gives_birth(libc::SIGCHLD);
    }
    assert!(!newcomers.are_none());
    assert!(newcomers.are_known(parent.pid));
    for _ in 0..3 {
        parent.ask(0, false, false);
        assert!(newcomers.are_none());
        parent.gives_birth(libc::SIGCHLD);
        assert!(!newcomers.are_none());
        assert!(newcomers.are_known(parent.pid));
    }
}

#[test]
fn a_process_with_other_threads_than_before_is_not_known() {
    let Some((parent, mut newcomers)) = noted() else {
        return;
    };
    parent.ask(A_THREAD, true, true);
    assert!(!newcomers.are_none());
    assert!(!newcomers.are_known(parent.pid));
    let mut both = Newcomers::of(parent.pid).expect("as before");
    assert!(both.are_none());
    parent.gives_birth(libc::SIGCHLD);
    assert!(!both.are_none());
    assert!(both.are_known(parent.pid));
}

#[test]
fn of_a_process_with_too_many_threads_nothing_is_noted() {
    let Some((parent, _)) = noted() else { return };
    for _ in 1..THREADS_MAX {
        parent.ask(A_THREAD, true, true);
    }
    assert!(Newcomers::of(parent.pid).is_some());
    parent.ask(A_THREAD, true, true);
    assert!(Newcomers::of(parent.pid).is_none());
}

#[test]
fn a_child_of_whoever_had_them_noted_knows_nothing_and_takes_nothing_away() {
    let Some((parent, mut newcomers)) = noted() else {
        return;
    };
    // SAFETY: the child asks, frees and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let none = newcomers.are_none() || newcomers.are_known(parent.pid);
        drop(newcomers);
        // SAFETY: ends this process at once.
        unsafe { libc::_exit(i32::from(none)) };
    }
    let mut status = -1;
    // SAFETY: writes one int into a live one.
    unsafe { libc::waitpid(child, &mut status, 0) };
    assert_eq!(status, 0);
    assert!(newcomers.are_none());
}

#[test]
fn nothing_is_asked_of_the_kernel_where_a_filter_of_system_calls_may_kill_for_it() {
    const ALLOW: u32 = 0x7fff_0000; // SECCOMP_RET_ALLOW
    let under_a_filter = || {
        let mut all = libc::sock_filter {
            code: (libc::BPF_RET | libc::BPF_K) as u16,
            jt: 0,
            jf: 0,
            k: ALLOW,
        };
        let filter = libc::sock_fprog {
            len: 1,
            filter: &raw mut all,
        };
        // SAFETY: a filter of one instruction, for this thread alone, which outlives the calls.
        unsafe {
            assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
            let mode = libc::SECCOMP_MODE_FILTER;
            assert_eq!(
                libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const filter),
                0
            );
        }
        Newcomers::of(std::process::id() as i32).is_none()
    };
    let made = std::thread::spawn(under_a_filter).join();
    assert!(made.expect("an answer"));
}
