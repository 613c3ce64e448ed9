use super::*;
use crate::sys::thread_state;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;

type Body = extern "C" fn(*mut libc::c_void) -> i32;

extern "C" fn rest(_: *mut libc::c_void) -> i32 {
    loop {
        // SAFETY: no pointers.
        unsafe { libc::pause() };
    }
}

/// Room for stacks, which are never freed: the tops of a small one and of what many can be cut from.
fn stacks() -> [*mut libc::c_void; 2] {
    let all = Box::leak(vec![0u8; SMALL + STACKS * STACK].into_boxed_slice());
    // SAFETY: within what was just allocated.
    unsafe { [SMALL, all.len()].map(|top| all.as_mut_ptr().add(top - 64).cast()) }
}

const SMALL: usize = 1 << 16;
const STACK: usize = 1 << 12;
const STACKS: usize = 1 << 10;

/// A child that ends with the value.
struct Child(i32);

impl Child {
    /// A process with this one's memory, or with its own copy of it, that runs `body`.
    fn begin(flags: i32, body: Body, argument: *mut libc::c_void) -> Self {
        let [stack, _] = stacks();
        // SAFETY: the stack is its own; the bodies below need nothing else of this process.
        let child = unsafe { libc::clone(body, stack, flags | libc::SIGCHLD, argument) };
        assert!(child > 0);
        Self(child)
    }

    fn pidfd(&self) -> Arc<OwnedFd> {
        Arc::new(crate::sys::pidfd_open(self.0).expect("a live child"))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: ends and reaps the child made above.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            libc::waitpid(self.0, std::ptr::null_mut(), libc::__WALL);
        }
    }
}

/// What asks as if process `pid` were a target.
fn asker(pid: i32, pidfd: &Weak<OwnedFd>, stopped: bool) -> Asker<'_> {
    Asker {
        pid,
        pidfd,
        tid: pid,
        stopped,
    }
}

#[test]
fn a_process_alone_in_its_memory_has_no_sharers_and_its_threads_are_none() {
    extern "C" fn with_a_thread(stack: *mut libc::c_void) -> i32 {
        begin_thread(stack);
        rest(stack)
    }
    let child = Child::begin(0, with_a_thread, stacks()[1]);
    wait_for_threads(child.0, 2);
    let pidfd = Arc::downgrade(&child.pidfd());
    let mut sharers = Sharers::default();
    for stopped in [false, true, true, false] {
        assert!(!sharers.any(asker(child.0, &pidfd, stopped)));
        assert!(!sharers.any_with_descriptors(asker(child.0, &pidfd, stopped)));
    }
}

#[test]
fn a_process_with_the_same_descriptors_is_found_while_it_lives_and_not_after() {
    let me = std::process::id() as i32;
    // A table of this thread's own, so that the tests beside this one are not met.
    // SAFETY: no pointers; descriptors that other threads use are not touched.
    let (tid, own) = unsafe { (libc::gettid(), libc::unshare(libc::CLONE_FILES)) };
    assert_eq!(own, 0);
    let mine = Arc::new(crate::sys::pidfd_open(me).expect("its own"));
    let pidfd = Arc::downgrade(&mine);
    let ask = Asker {
        tid,
        ..asker(me, &pidfd, true)
    };
    let mut sharers = Sharers::default();
    assert!(!sharers.any_with_descriptors(ask));
    let child = Child::begin(libc::CLONE_FILES, rest, std::ptr::null_mut());
    assert!(sharers.any_with_descriptors(ask));
    drop(child);
    assert!(!sharers.any_with_descriptors(ask));
}

fn begin_thread(stack: *mut libc::c_void) {
    let thread = libc::CLONE_VM | libc::CLONE_SIGHAND | libc::CLONE_THREAD;
    // SAFETY: the stack given is its own, and it needs nothing else.
    unsafe { libc::clone(rest, stack, thread, std::ptr::null_mut()) };
}

fn wait_for_threads(pid: i32, threads: u64) {
    while processes::thread_count(pid).expect("its threads") < threads {
        std::thread::yield_now();
    }
}

/// What processes of one memory have between them.
#[repr(C)]
struct Common {
    stacks: [*mut libc::c_void; 2],
    /// Set for the next thing to be done.
    go: AtomicU32,
    /// Who has come.
    born: AtomicU32,
}

impl Common {
    fn of(shared: *mut libc::c_void) -> &'static Self {
        // SAFETY: each is leaked, or in memory that stays mapped, and of this type.
        unsafe { &*shared.cast::<Self>() }
    }

    /// In memory that children with a copy of the rest have, too.
    fn new() -> &'static Self {
        // SAFETY: fresh memory, large enough and zero, of which nobody else knows.
        unsafe {
            let (size, rw) = (size_of::<Self>(), libc::PROT_READ | libc::PROT_WRITE);
            let how = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
            let at = libc::mmap(std::ptr::null_mut(), size, rw, how, -1, 0);
            assert_ne!(at, libc::MAP_FAILED);
            (*at.cast::<Self>()).stacks = stacks();
            &*at.cast::<Self>()
        }
    }

    fn place(&'static self) -> *mut libc::c_void {
        std::ptr::from_ref(self).cast_mut().cast()
    }

    fn wait(&self) {
        while self.go.load(Ordering::SeqCst) == 0 {
            // SAFETY: no pointers.
            unsafe { libc::sched_yield() };
        }
    }

    fn go(&self) {
        self.go.store(1, Ordering::SeqCst);
    }
}

/// Begins a thread that rests, and ends before it, when told to.
extern "C" fn leave_a_thread(common: *mut libc::c_void) -> i32 {
    let common = Common::of(common);
    begin_thread(common.stacks[1]);
    common.wait();
    // SAFETY: ends this thread alone.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
    0
}

/// A process that has a memory of its own, in which another then is.
extern "C" fn has_another(common: *mut libc::c_void) -> i32 {
    let flags = libc::CLONE_VM | libc::SIGCHLD;
    // SAFETY: the stack is its own, and dies with whoever is in this memory.
    unsafe {
        let another = libc::clone(
            dies_with_its_parent,
            Common::of(common).stacks[0],
            flags,
            common,
        );
        if another < 0 {
            libc::_exit(1);
        }
    }
    rest(common)
}

extern "C" fn dies_with_its_parent(common: *mut libc::c_void) -> i32 {
    // SAFETY: no pointers.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    leave_a_thread(common)
}

#[test]
fn a_process_in_the_memory_is_found_also_where_its_first_thread_ends_before_others() {
    for known_before in [false, true] {
        let common = Common::new();
        let target = Child::begin(0, has_another, common.place());
        let own = target.pidfd();
        let pidfd = Arc::downgrade(&own);
        let children = format!("/proc/{0}/task/{0}/children", target.0);
        let another: i32 = loop {
            let told = std::fs::read_to_string(&children).unwrap_or_default();
            if let Ok(id) = told.trim().parse() {
                break id;
            }
        };
        wait_for_threads(another, 2);
        let mut sharers = Sharers::default();
        if known_before {
            assert!(sharers.any(asker(target.0, &pidfd, true)));
        }
        common.go();
        while thread_state(another, another) != Some('Z') {
            std::thread::yield_now();
        }
        assert!(sharers.any(asker(target.0, &pidfd, true)), "{known_before}");
        assert!(sharers.any(asker(target.0, &pidfd, true)), "{known_before}");
    }
}

/// Gives birth to the next of its kind and ends, as long as the target lives.
extern "C" fn hop(common: *mut libc::c_void) -> i32 {
    let flags = libc::CLONE_VM | libc::CLONE_PARENT | libc::SIGCHLD;
    let state = Common::of(common);
    let turn = state.go.fetch_add(1, Ordering::SeqCst) as usize;
    // SAFETY: no pointers but that of a stack whose last user ended, as soon as it was born, a thousand births ago.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        if libc::getppid() != state.stacks[0] as usize as i32 {
            libc::_exit(0);
        }
        let stack = state.stacks[1].cast::<u8>().sub(turn % STACKS * STACK);
        libc::clone(hop, stack.cast(), flags, common);
        libc::_exit(0);
    }
}

extern "C" fn has_a_hopper(common: *mut libc::c_void) -> i32 {
    let state = common.cast::<Common>();
    let flags = libc::CLONE_VM | libc::SIGCHLD;
    // SAFETY: the common memory is this process's and its children's; who has ended is reaped by the kernel.
    unsafe {
        libc::signal(libc::SIGCHLD, libc::SIG_IGN);
        Common::of(common).wait();
        let stack = (*state).stacks[0];
        (*state).stacks[0] = libc::getpid() as usize as *mut libc::c_void;
        libc::clone(hop, stack, flags, common);
    }
    rest(common)
}

#[test]
fn a_process_in_the_memory_is_found_that_gives_birth_to_the_next_and_ends_all_the_time() {
    for round in 0..10 {
        let common = Common::new();
        let target = Child::begin(0, has_a_hopper, common.place());
        let own = target.pidfd();
        let pidfd = Arc::downgrade(&own);
        let mut sharers = Sharers::default();
        assert!(!sharers.any(asker(target.0, &pidfd, true)));
        common.go();
        let born = || common.go.load(Ordering::SeqCst);
        while born() < 10 {
            std::thread::yield_now();
        }
        let any = |_| sharers.any(asker(target.0, &pidfd, true));
        assert_eq!(
            (0..500).map(any).filter(|any| !any).count(),
            0,
            "round {round}"
        );
        // So that nothing is said of one that had ended by itself.
        let before = born();
        while born() == before {
            std::thread::yield_now();
        }
    }
}

#[test]
fn who_was_asked_while_the_target_ran_is_asked_again() {
    let target = Child::begin(0, rest, std::ptr::null_mut());
    let own = target.pidfd();
    let pidfd = Arc::downgrade(&own);
    let mut sharers = Sharers::default();
    let mut certain = |stopped| {
        assert!(!sharers.any(asker(target.0, &pidfd, stopped)));
        let known = &sharers.known[&(What::Memory, target.0)];
        let nobody = known.nobody.map(|n| n.newest);
        (nobody, sharers.is_due(target.0))
    };
    assert_eq!(certain(false), (None, true));
    let (first, due) = certain(true);
    assert!(first.is_some() && !due);
    drop(Child::begin(0, rest, std::ptr::null_mut()));
    assert_eq!(certain(false).0, first);
    assert!(certain(true).0 > first);
}

#[test]
fn what_is_known_of_a_process_is_not_taken_for_what_another_with_its_id_is() {
    let (one, another) = (
        Child::begin(0, rest, std::ptr::null_mut()),
        Child::begin(0, rest, std::ptr::null_mut()),
    );
    let owns = [one.pidfd(), another.pidfd()];
    let [before, after] = owns.each_ref().map(Arc::downgrade);
    let mut sharers = Sharers::default();
    assert!(!sharers.any(asker(one.0, &before, true)));
    assert!(sharers.known[&(What::Memory, one.0)].nobody.is_some());
    assert!(!sharers.any(asker(one.0, &after, false)));
    assert!(sharers.known[&(What::Memory, one.0)].nobody.is_none());
}

/// Has one in the target's memory come, in another way each time, once it is told to.
extern "C" fn has_one_more(common: *mut libc::c_void) -> i32 {
    let state = Common::of(common);
    state.wait();
    let flags = state.go.load(Ordering::SeqCst) as i32;
    // SAFETY: the stack is the child's own; in a `vfork` this thread waits meanwhile.
    unsafe { libc::clone(dies_with_the_target, state.stacks[0], flags, common) };
    rest(common)
}

extern "C" fn dies_with_the_target(common: *mut libc::c_void) -> i32 {
    // SAFETY: no pointers. With `CLONE_PARENT` that is the test.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    let state = Common::of(common);
    state
        .born
        .store(crate::changes::own_tid() as u32, Ordering::SeqCst);
    rest(common)
}

/// Has so many ids used that births are noted from the next asking on, if they may be.
fn use_ids() {
    for _ in 0..=MANY {
        drop(Child::begin(0, rest, std::ptr::null_mut()));
    }
}

#[test]
fn where_births_are_noted_nobody_is_asked_before_the_process_has_given_one_in_whatever_way() {
    let ways = [0, libc::CLONE_PARENT, libc::CLONE_VFORK];
    for flags in ways.map(|way| way | libc::CLONE_VM | libc::SIGCHLD) {
        let common = Common::new();
        let target = Child::begin(0, has_one_more, common.place());
        let own = target.pidfd();
        let pidfd = Arc::downgrade(&own);
        let mut sharers = Sharers::default();
        let key = (What::Memory, target.0);
        let newest = |sharers: &Sharers| sharers.known[&key].nobody.map(|n| n.newest);
        assert!(!sharers.any(asker(target.0, &pidfd, true)));
        use_ids();
        assert!(!sharers.any(asker(target.0, &pidfd, true)));
        if sharers.known[&key].newcomers.is_none() {
            println!("no births are noted for this user");
            return;
        }
        let asked_last = newest(&sharers);
        use_ids();
        for stopped in [false, true] {
            assert!(!sharers.any(asker(target.0, &pidfd, stopped)));
            assert!(!sharers.is_due(target.0));
        }
        assert_eq!(newest(&sharers), asked_last);
        common.go.store(flags as u32, Ordering::SeqCst);
        while common.born.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        let born = common.born.load(Ordering::SeqCst) as i32;
        use_ids();
        for stopped in [false, true] {
            assert!(sharers.any(asker(target.0, &pidfd, stopped)), "{flags:x}");
            assert_eq!(sharers.of(target.0), [born]);
        }
        // SAFETY: ends who was found, of whom this process is the parent or the target is.
        unsafe {
            libc::kill(born, libc::SIGKILL);
            libc::waitpid(born, std::ptr::null_mut(), libc::__WALL);
        }
        while same_memory(target.0, born) {
            std::thread::yield_now();
        }
        for _ in 0..2 {
            assert!(!sharers.any(asker(target.0, &pidfd, true)), "{flags:x}");
        }
        assert!(newest(&sharers) > asked_last);
    }
}
