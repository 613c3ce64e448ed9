use super::*;

/// Births as if a kernel had told of them, by who gave birth and to whom.
fn told(births: &[(i32, i32)]) -> Births {
    let mut told = Births::default();
    for &(parent, child) in births {
        told.add(parent, child);
    }
    told
}

fn children(births: &Births, pid: i32, since: Moment) -> Option<Vec<i32>> {
    let family = family(pid, &births.since(since)?, since.place);
    Some(family.into_iter().map(|(_, child)| child).collect())
}

#[test]
fn a_family_is_who_was_born_to_one_and_to_those_in_whatever_order_they_are_read() {
    let births = told(&[(30, 31), (1, 5), (20, 30), (10, 20), (5, 6)]);
    let start = Births::default().now();
    assert_eq!(children(&births, 10, start), Some(vec![31, 30, 20]));
    assert_eq!(children(&births, 1, start), Some(vec![5, 6]));
    assert_eq!(children(&births, 7, start), Some(vec![]));
}

#[test]
fn who_was_born_before_is_not_among_them_and_an_id_that_came_twice_is_there_twice() {
    let mut births = told(&[(10, 20), (10, 21)]);
    let since = births.now();
    assert_eq!(children(&births, 10, since), Some(vec![]));
    births.add(10, 20);
    births.add(21, 22);
    births.add(20, 23);
    births.add(10, 20);
    assert_eq!(
        family(10, &births.since(since).expect("all of them"), since.place),
        [(2, 20), (4, 23), (5, 20)]
    );
}

#[test]
fn nothing_is_said_where_one_may_have_been_missed() {
    let mut births = told(&[(10, 20)]);
    let since = births.now();
    births.begin_anew();
    assert_eq!(births.since(since), None);
    let since = births.now();
    births.add(10, 20);
    for child in 0..BIRTHS as i32 - 1 {
        births.add(1000, 1001 + child);
    }
    assert_eq!(children(&births, 10, since), Some(vec![20]));
    births.add(1000, 1);
    assert_eq!(births.since(since), None, "no more are kept");
}

#[test]
fn processors_are_read_from_a_list_unless_there_are_too_many() {
    assert_eq!(processors(b"0\n"), Some(vec![0]));
    assert_eq!(processors(b"0-2,8,10-11\n"), Some(vec![0, 1, 2, 8, 10, 11]));
    assert_eq!(processors(b"0-63\n").map(|all| all.len()), Some(64));
    assert_eq!(processors(b"0-64\n"), None);
    assert_eq!(processors(b"0-2000000000\n"), None);
    assert_eq!(processors(b"\n"), None);
}

/// A recorder, where the kernel lets this user have one; else the reason is told.
fn recorder() -> Option<Recorder> {
    let made = Recorder::new(7);
    // SAFETY: no pointers.
    let root = unsafe { libc::geteuid() } == 0;
    if let Err(e) = &made {
        println!("no births are noted: {e}");
        assert!(
            !root
                || e.kind() == io::ErrorKind::Unsupported
                || e.raw_os_error() == Some(libc::EACCES)
        );
    }
    made.ok()
}

/// Has a child come and go; its id.
fn child(flags: i32) -> i32 {
    extern "C" fn end(_: *mut libc::c_void) -> i32 {
        0
    }
    let stack = Box::leak(vec![0u8; 1 << 14].into_boxed_slice());
    // SAFETY: the stack is the child's own and never freed; it ends at once.
    unsafe {
        let top = stack.as_mut_ptr().add(stack.len() - 64);
        let child = libc::clone(end, top.cast(), flags, std::ptr::null_mut());
        assert!(child > 0);
        if flags & libc::CLONE_PARENT == 0 {
            assert_eq!(
                libc::waitpid(child, std::ptr::null_mut(), libc::__WALL),
                child
            );
        }
        child
    }
}

#[test]
fn whoever_this_process_gives_birth_to_is_noted_under_it_also_as_another_ones_child_and_no_thread_is(
) {
    let Some(mut recorder) = recorder() else {
        return;
    };
    let me = std::process::id() as i32;
    let since = recorder.births.now();
    std::thread::spawn(|| {})
        .join()
        .expect("a thread that ends");
    let with = [
        0,
        libc::CLONE_VM,
        libc::CLONE_VM | libc::CLONE_VFORK,
        libc::CLONE_VM | libc::CLONE_PARENT,
    ];
    let born = with.map(|flags| child(flags | libc::SIGCHLD));
    recorder.read();
    let mine = children(&recorder.births, me, since).expect("nothing was missed");
    // Tests beside this one have children, too.
    assert!(born.iter().all(|b| mine.contains(b)), "{born:?} {mine:?}");
    // SAFETY: no pointers.
    assert!(!mine.contains(&unsafe { libc::gettid() }));
    assert_eq!(all_left_out(&recorder.events), Some(0));
}

#[test]
fn whoever_is_born_to_somebody_outside_of_our_namespace_may_be_anybodys() {
    let births = told(&[(0, 5), (-1, 6), (5, 7), (8, 9)]);
    let start = Births::default().now();
    assert_eq!(children(&births, 1, start), Some(vec![5, 6, 7]));
}

#[test]
fn a_long_chain_of_births_that_was_read_from_its_end_takes_no_longer_than_another() {
    let count = BIRTHS as i32;
    let births: Vec<_> = (0..count).rev().map(|k| (k + 1, k + 2)).collect();
    assert_eq!(family(1, &births, 0).len(), BIRTHS); // in seconds, if each were looked for among all
}

/// A ring on processor 0, with its event, where the kernel lets this user have one.
fn small_ring() -> Option<(Ring, OwnedFd)> {
    recorder()?;
    Some(Ring::new(0, LEAST_BYTES).expect("another ring"))
}

/// Threads that fill a small ring.
const THREADS: usize = LEAST_BYTES / 64;

/// Has so many threads come and go on processor 0.
fn threads_there(count: usize) {
    std::thread::spawn(move || {
        on_processor(0);
        for _ in 0..count {
            let thread = std::thread::spawn(|| {});
            thread.join().expect("a thread that ends");
        }
    })
    .join()
    .expect("a thread that ends");
}

/// The id of a child that came and went on processor 0.
fn child_there() -> i32 {
    let born = std::thread::spawn(|| {
        on_processor(0);
        child(libc::SIGCHLD)
    });
    born.join().expect("a child")
}

#[test]
fn births_for_which_there_is_no_room_are_told_of_and_those_after_them_are_noted() {
    let Some((mut ring, event)) = small_ring() else {
        return;
    };
    assert_eq!(left_out(&event), Some(0));
    threads_there(THREADS + 64);
    assert!(ring.read(|_, _| {}));
    let before = left_out(&event).expect("an event that is there");
    assert!(before > 0);
    let born = child_there();
    let mut noted = Vec::new();
    assert!(ring.read(|_, child| noted.push(child)));
    // Unless tests beside this one have had too many births again.
    assert!(noted.contains(&born) || left_out(&event) > Some(before));
}

#[test]
fn a_birth_for_which_there_was_no_room_while_others_were_read_is_told_of() {
    let Some((mut ring, event)) = small_ring() else {
        return;
    };
    threads_there(THREADS / 2);
    child_there();
    let mut full = false;
    assert!(ring.read(|_, _| {
        if !std::mem::replace(&mut full, true) {
            threads_there(THREADS);
        }
    }));
    assert!(full);
    // There is room again by the time the memory is read next, and the kernel writes that only with the next record.
    let unread = ring.number(Ring::HEAD).load(Ordering::Acquire) - ring.read_to;
    assert!(unread < LEAST_BYTES as u64 * 3 / 4);
    assert!(left_out(&event) > Some(0));
}

#[test]
fn an_era_ends_where_a_birth_was_left_out_and_the_next_is_whole() {
    let Some(recorder) = recorder() else { return };
    let since = recorder.births.now();
    let kept = Mutex::new(Kept {
        recorder: Some(recorder),
        made: 1,
        tried: None,
    });
    let is_noted = |since| {
        let born = child(libc::SIGCHLD);
        let (all, _) = born_in(&kept, std::process::id() as i32, since)?;
        Some(all.iter().any(|&(_, child)| child == born))
    };
    assert_eq!(is_noted(since), Some(true));
    {
        // As if more had been left out before than now.
        let mut kept = lock(&kept);
        kept.recorder.as_mut().expect("a recorder").left_out += 1;
    }
    assert_eq!(is_noted(since), None);
    assert_eq!(is_noted(since), None);
    let now = lock(&kept).up_to_date().expect("a recorder").births.now();
    assert_eq!(is_noted(now), Some(true));
    // Where an event is gone there is nothing any more.
    disable(&lock(&kept).recorder.as_ref().expect("a recorder").events[0]);
    assert_eq!(is_noted(now), None);
    assert!(lock(&kept).recorder.is_none());
}

/// Keeps the calling thread on one processor.
fn on_processor(processor: usize) {
    // SAFETY: a set of the size that is told.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(processor, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &raw const set);
    }
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
        Recorder::new(7).map(|_| ()).map_err(|e| e.kind())
    };
    let made = std::thread::spawn(under_a_filter).join();
    assert_eq!(made.expect("an answer"), Err(io::ErrorKind::Unsupported));
}

/// What the kernel does to an event whose processor goes.
fn disable(event: &OwnedFd) {
    // The request is PERF_EVENT_IOC_DISABLE.
    // SAFETY: no pointers.
    let disabled = unsafe { libc::ioctl(event.as_raw_fd(), 0x2401, 0) };
    assert_eq!(disabled, 0);
}

#[test]
fn an_event_that_is_no_more_on_its_processor_is_told_from_one_that_is() {
    let Some(recorder) = recorder() else { return };
    for event in recorder.events.iter() {
        assert!(left_out(event).is_some());
        disable(event);
        assert_eq!(left_out(event), None);
    }
    assert_eq!(all_left_out(&recorder.events), None);
}
