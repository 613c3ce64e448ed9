//! The tracer dies at a chosen instant: the target goes on where it was, with its bytes, registers and signal mask.
//!
//! The binary of this test is its own target and its own tracer, by environment. `PAGEONE_STRIDE` says how many instants
//! are left out between two that are tried (the default; 1 tries all of them).

use std::io::{BufRead, BufReader, PipeReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, Stdio};

use pagemem::pagemap::{self, Query};
use pagemem::ptrace::Tracer;
use pagemem::sys::PAGE;
use pagemem::target::{PageOutcome, PageRun, StopLimits, Target, Way};

const TARGET: &str = "PAGEONE_TEST_TARGET";
const TRACER: &str = "PAGEONE_TEST_TRACER";
const PAGES: usize = 64;
/// Most steps and most instructions that are looked for: reaching it means that a run never ends.
const MOST: u32 = 20_000;

fn may_trace() -> bool {
    // SAFETY: no pointers.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | 1) };
    if fd >= 0 {
        // SAFETY: just opened, used by nobody.
        unsafe { libc::close(fd as i32) };
    }
    fd >= 0
}

fn byte(page: usize) -> u8 {
    // Pages of zeros, pages that are alike, and pages that are not.
    match page % 4 {
        0 => 0,
        1 | 2 => 7,
        _ => page as u8 | 0x80,
    }
}

/// The target: a process of one thread that holds pages, and computes or sleeps in a call, until it is told to look
/// whether all is as it was.
#[test]
fn target() {
    let Ok(kind) = std::env::var(TARGET) else {
        return;
    };
    // SAFETY: the child is a copy with this thread alone; it allocates, which the C library allows after a fork.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: no pointers. It outlives no test that has failed.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        let right = std::panic::catch_unwind(|| live(kind == "busy")).is_ok();
        // SAFETY: ends this process at once.
        unsafe { libc::_exit(i32::from(!right)) };
    }
    let mut status = 0;
    // SAFETY: writes one int into a live one.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0, "how the target ended");
    println!("RIGHT");
}

fn live(busy: bool) {
    let bytes = PAGES * PAGE as usize;
    // SAFETY: a fresh mapping at an address that the kernel chooses, of the stated length; the signal set is a live local.
    let (area, mask) = unsafe {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let p = libc::mmap(std::ptr::null_mut(), bytes, prot, kind, -1, 0);
        assert_ne!(p, libc::MAP_FAILED);
        libc::madvise(p, bytes, libc::MADV_NOHUGEPAGE);
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigaddset(&mut set, libc::SIGUSR1);
        libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut());
        (std::slice::from_raw_parts_mut(p.cast::<u8>(), bytes), set)
    };
    for (i, b) in area.iter_mut().enumerate() {
        *b = byte(i / PAGE as usize);
    }
    println!("AREA {},{}", std::process::id(), area.as_ptr() as u64);
    if busy {
        compute();
    } else {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).expect("a line");
        assert_eq!(line, "end\n");
    }
    for (i, b) in area.iter().enumerate() {
        assert_eq!(*b, byte(i / PAGE as usize), "byte {i}");
    }
    // SAFETY: live local sets.
    unsafe {
        let mut now: libc::sigset_t = std::mem::zeroed();
        libc::sigprocmask(libc::SIG_SETMASK, std::ptr::null(), &mut now);
        for signal in 1..32 {
            let (now, then) = (
                libc::sigismember(&now, signal),
                libc::sigismember(&mask, signal),
            );
            assert_eq!(now, then, "signal {signal}");
        }
    }
    area.fill(3);
    assert!(area.iter().all(|b| *b == 3));
}

/// Computes with integer and floating point registers until `SIGUSR1`, which is blocked, is pending.
fn compute() {
    let mut first = None;
    loop {
        let (mut check, mut x) = (0u64, 1.5f64);
        for i in 0..20_000u64 {
            check = std::hint::black_box(check.rotate_left(5) ^ i.wrapping_mul(0x9e37_79b9));
            x = std::hint::black_box(x * 1.000_01 + 0.5);
        }
        assert_eq!((check, x), *first.get_or_insert((check, x)));
        // SAFETY: a live local set.
        let pending = unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigpending(&mut set);
            libc::sigismember(&set, libc::SIGUSR1) == 1
        };
        if pending {
            return;
        }
    }
}

/// The tracer: attaches, merges, drops zero pages, gives back, detaches.
#[test]
fn tracer() {
    let Ok(text) = std::env::var(TRACER) else {
        return;
    };
    let (pid, area) = text.split_once(',').expect("pid,area");
    let (pid, area): (i32, u64) = (pid.parse().expect("pid"), area.parse().expect("area"));
    let (writer, pool) = pagemem::pool::make(1024).expect("a pool");
    let mut tracer = Tracer::default();
    let mut target = Target::attach(
        &mut tracer,
        pid,
        StopLimits {
            stop_timeout: std::time::Duration::from_secs(5),
            ..StopLimits::default()
        },
        false,
        &pool,
    )
    .expect("attach");
    assert_eq!(target.arm(&[(area, area + PAGES as u64 * PAGE)]), [0]);
    // The scan before: what has been written since is left alone.
    let pages = std::fs::File::open(format!("/proc/{pid}/pagemap")).expect("its pagemap");
    let scan = || {
        let query = Query {
            flags: pagemap::SCAN_WP_MATCHING | pagemap::SCAN_CHECK_WPASYNC,
            mask: pagemap::PAGE_IS_WRITTEN,
            returned: pagemap::PAGE_IS_WRITTEN,
            ..Query::default()
        };
        let end = area + PAGES as u64 * PAGE;
        pagemap::scan(pages.as_raw_fd(), &[area], &[end], &query).expect("a scan");
    };
    scan();
    let at = |page: usize| area + page as u64 * PAGE;
    let run = |page: usize, frame: u32| PageRun {
        addr: at(page),
        pages: 2,
        frame,
    };
    let alike: Vec<usize> = (1..PAGES).step_by(4).collect();
    let mut ok = [1u8; 2];
    let mut reader = pagemem::pool::Reader::default();
    writer.fill(&mut reader, (pid, 0), &[at(1), at(2)], &[10, 11], &mut ok);
    assert_eq!(ok, [0, 0]);
    let runs: Vec<PageRun> = alike.iter().map(|&p| run(p, 10)).collect();
    let done = |codes: &[u8]| codes.iter().all(|c| *c == PageOutcome::Done as u8);
    assert!(done(&target.merge(&mut tracer, &pool, &runs).codes));
    let zeros: Vec<PageRun> = (0..PAGES)
        .step_by(4)
        .map(|p| PageRun {
            pages: 1,
            ..run(p, 0)
        })
        .collect();
    assert!(done(&target.drop_zero(&mut tracer, &zeros).codes));
    // Not apart: moving guarded frames waits for its event to be read, and a thread that waits cannot be stepped.
    let outcome = target.unmerge(&mut tracer, &pool, &runs[..4], Way::Joined);
    assert!(done(&outcome.codes));
    target.detach(&mut tracer).expect("detach");
    println!("DETACHED");
}

struct Targeted {
    child: Child,
    /// The process that is traced, a child of `child`.
    pid: i32,
    input: ChildStdin,
    /// What both have said, errors too, in the order of it.
    output: BufReader<PipeReader>,
    told: String,
    area: u64,
    busy: bool,
}

fn this(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    // One thread: what is left inside injected code is the only thread of the process that matters.
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]);
    command
}

fn start(busy: bool) -> Targeted {
    let (output, to) = std::io::pipe().expect("a pipe");
    let mut child = this("target")
        .env(TARGET, if busy { "busy" } else { "asleep" })
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::piped())
        .stdout(to.try_clone().expect("another end"))
        .stderr(to)
        .spawn()
        .expect("a target");
    let input = child.stdin.take().expect("its input");
    let (mut output, mut told) = (BufReader::new(output), String::new());
    let area = line_with(&mut output, "AREA ", &mut told);
    let area = area.unwrap_or_else(|| panic!("no area: {told}"));
    let (pid, area) = area.trim().split_once(',').expect("pid,area");
    let (pid, area) = (pid.parse().expect("pid"), area.parse().expect("area"));
    Targeted {
        child,
        pid,
        input,
        output,
        told,
        area,
        busy,
    }
}

/// What stands behind `word` in the first line that has it; all lines up to there are added to `told`.
fn line_with(output: &mut impl BufRead, word: &str, told: &mut String) -> Option<String> {
    loop {
        let from = told.len();
        if output.read_line(told).ok()? == 0 {
            return None;
        }
        if let Some(i) = told[from..].find(word) {
            return Some(told[from + i + word.len()..].to_owned());
        }
    }
}

#[derive(PartialEq)]
enum Traced {
    /// The tracer has detached.
    ToItsEnd,
    /// It left when the program was back in its own code.
    Back,
    /// It died as it was told to.
    Died,
}

impl Targeted {
    /// Has a tracer work on it, with `name` set to `value`, and says what became of that.
    fn traced(&self, name: &str, value: &str) -> Traced {
        let out = this("tracer")
            .env(TRACER, format!("{},{}", self.pid, self.area))
            .env(name, value)
            .output()
            .expect("a tracer");
        let told = String::from_utf8_lossy(&out.stdout);
        let killed = out.status.signal() == Some(libc::SIGKILL);
        match (told.contains("DETACHED"), told.contains("BACK")) {
            (true, _) => Traced::ToItsEnd,
            (_, true) => Traced::Back,
            _ if killed => Traced::Died,
            _ => panic!(
                "{name}={value}: {told} {}",
                String::from_utf8_lossy(&out.stderr)
            ),
        }
    }

    fn expect_right(mut self, when: &str) {
        if self.busy {
            // SAFETY: no pointers.
            unsafe { libc::kill(self.pid, libc::SIGUSR1) };
        } else {
            let _ = self.input.write_all(b"end\n");
        }
        let right = line_with(&mut self.output, "RIGHT", &mut self.told).is_some();
        let status = self.child.wait().expect("its status");
        assert!(
            right && status.success(),
            "{when}: the target ended with {status}, and said:\n{}",
            self.told
        );
    }
}

impl Drop for Targeted {
    fn drop(&mut self) {
        // Where the test has failed it may still be there.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn stride(default: u32) -> u32 {
    std::env::var("PAGEONE_STRIDE")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(default)
}

#[test]
fn a_target_goes_on_when_its_tracer_dies_before_any_step() {
    if !may_trace() {
        eprintln!("skipped: no userfaultfd here");
        return;
    }
    let mut tried = 0;
    for busy in [false, true] {
        let mut at = 0;
        loop {
            assert!(at < MOST, "the tracer never ends");
            let target = start(busy);
            let ended = target.traced("PAGEONE_DIE_AT", &at.to_string());
            target.expect_right(&format!("tracer died before step {at}"));
            if ended == Traced::ToItsEnd {
                break;
            }
            tried += 1;
            at += stride(29);
        }
    }
    println!("{tried} steps");
    assert!(tried > 3, "only {tried} steps");
}

#[test]
fn a_target_goes_on_when_it_is_left_at_any_instruction_of_injected_code() {
    if !may_trace() {
        eprintln!("skipped: no userfaultfd here");
        return;
    }
    let mut tried = 0;
    for code in 0.. {
        // Of code that compares or copies pages not every round of its loop.
        let mut at = 0;
        while at < 400 {
            // One that sleeps goes back to sleep where its code ends, which is seen.
            let target = start(false);
            let ended = target.traced("PAGEONE_LEAVE_AT", &format!("{code},{at}"));
            target.expect_right(&format!("left in code {code} after {at} instructions"));
            match ended {
                Traced::ToItsEnd => {
                    assert!(
                        code > 8 && tried > 20,
                        "only {tried} instants in {code} codes"
                    );
                    println!("{tried} instants in {code} codes");
                    return;
                }
                Traced::Back => break,
                Traced::Died => tried += 1,
            }
            at += 1 + (stride(150) - 1) * u32::from(code > 2);
        }
    }
}
