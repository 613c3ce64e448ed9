//! When removed things may be used again: epochs, with the numbers of nodes and ids in the place of pointers.
//!
//! A thread that works on the tree owns a [`Participant`], and has written the epoch in which it started there: it is
//! *pinned*, once a batch. What it takes out of the tree goes into a bag marked with the epoch of that moment, and may
//! be used again when the global epoch is two further: every participant has then been seen in a later epoch or free,
//! so nobody can still hold the number. The epoch moves on when every pinned participant shows the present one.
//!
//! Nothing waits: a participant is taken with one CAS, more are added when all are taken, and a thread that is
//! suspended while pinned only keeps numbers from being used again until it goes on. Participants keep what their
//! owners gathered (free numbers, bags); whoever finds nothing free looks into the free participants before it asks
//! for new numbers.

use crate::primitive::{fence, AtomicI64, AtomicPtr, AtomicU32, AtomicU64, Ordering};
use std::cell::{Cell, UnsafeCell};
use std::collections::VecDeque;

/// Participants of one block; blocks are added when more threads than that are at work at once.
const PARTICIPANTS: usize = if cfg!(loom) { 3 } else { 16 };
/// New numbers that a participant takes from the counter at a time.
const RANGE: u32 = if cfg!(loom) { 1 } else { 64 };
/// Free numbers that a participant hands to the others at a time; it keeps up to twice as many.
const BUNDLE: usize = if cfg!(loom) { 2 } else { 128 };
/// Retired things after which a participant tries to move the epoch on.
const ENOUGH: usize = if cfg!(loom) { 1 } else { 64 };

/// State of a participant: nobody's.
const EMPTY: u64 = 0;
/// State of a participant: somebody's who reads nothing of the tree. Larger values: `epoch << 1 | 1`, reading.
const TAKEN: u64 = 1;
const FIRST_EPOCH: u64 = 2;

/// The two kinds of numbers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Node = 0,
    Id = 1,
}

/// What was taken out of the tree in one epoch.
struct Bag {
    epoch: u64,
    numbers: [Vec<u32>; 2],
    boxes: Vec<Box<dyn Send>>,
}

/// What the owner of a participant alone touches.
#[derive(Default)]
struct Local<T> {
    free: [Vec<u32>; 2],
    range: [std::ops::Range<u32>; 2],
    bags: VecDeque<Bag>,
    pending: usize,
    /// What the owner keeps from pin to pin for its own ends.
    kept: T,
}

/// One place for a thread at work. A line of its own (two, for the prefetcher of pairs).
#[repr(align(128))]
struct Participant<T> {
    state: AtomicU64,
    /// Whether there is something in `local` that others could use.
    useful: AtomicU32,
    /// Objects inserted less objects removed by the owners of this participant, by the root that they hang below.
    len: [AtomicI64; 2],
    local: UnsafeCell<Local<T>>,
}

struct Block<T> {
    participants: [Participant<T>; PARTICIPANTS],
    next: AtomicPtr<Block<T>>,
}

impl<T: Default> Block<T> {
    fn new() -> Box<Block<T>> {
        let participant = || Participant {
            state: AtomicU64::new(EMPTY),
            useful: AtomicU32::new(0),
            len: [AtomicI64::new(0), AtomicI64::new(0)],
            local: UnsafeCell::default(),
        };
        Box::new(Block {
            participants: std::array::from_fn(|_| participant()),
            next: AtomicPtr::new(std::ptr::null_mut()),
        })
    }
}

/// Free numbers on their way from one participant to another.
struct Bundle {
    numbers: Vec<u32>,
    next: *mut Bundle,
}

// SAFETY: `next` is only followed by whoever popped or may pop the bundle, under the rules of `Domain`.
unsafe impl Send for Bundle {}

/// The participants, the epoch, and the numbers that are free, of one tree. A participant keeps a `T` for its owner.
pub(crate) struct Domain<T> {
    epoch: AtomicU64,
    first: Box<Block<T>>,
    /// Stacks of bundles, one a kind. A bundle is pushed once in its life and freed by epoch, so that an address
    /// cannot come back while somebody is in the middle of a pop.
    bundles: [AtomicPtr<Bundle>; 2],
    /// The next number never used, one a kind.
    unused: [AtomicU32; 2],
}

// SAFETY: `local` of a participant is touched only by the thread that took it (state CAS from EMPTY, Acquire) until that
// thread gives it back (Release), so that its parts go from thread to thread, as `T: Send` allows; the bags hold numbers
// and `Send` boxes; everything else is atomics.
unsafe impl<T: Send> Sync for Domain<T> {}
// SAFETY: as above; nothing is bound to a thread.
unsafe impl<T: Send> Send for Domain<T> {}

thread_local! {
    /// The number of the participant that this thread had last, of whatever tree: likely free, and warm.
    static LAST: Cell<usize> = const { Cell::new(0) };
}

/// The numbers are used up: 2^32 - 1 objects or nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

impl std::fmt::Display for Full {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the tree is full: it numbers its objects with 32 bits")
    }
}

impl std::error::Error for Full {}

impl<T: Default> Domain<T> {
    pub(crate) fn new() -> Self {
        Domain {
            epoch: AtomicU64::new(FIRST_EPOCH),
            first: Block::new(),
            bundles: std::array::from_fn(|_| AtomicPtr::new(std::ptr::null_mut())),
            unused: [AtomicU32::new(0), AtomicU32::new(0)],
        }
    }

    fn participants(&self) -> impl Iterator<Item = &Participant<T>> {
        let mut block: *const Block<T> = &*self.first;
        std::iter::from_fn(move || {
            // SAFETY: blocks are never freed before the domain; a null pointer ends the chain.
            let b = unsafe { block.as_ref() }?;
            block = b.next.load(Ordering::Acquire);
            Some(b.participants.iter())
        })
        .flatten()
    }

    /// Takes a free participant.
    fn take(&self) -> &Participant<T> {
        let take = |p: &Participant<T>| {
            p.state.load(Ordering::Relaxed) == EMPTY
                && p.state
                    .compare_exchange(EMPTY, TAKEN, Ordering::Acquire, Ordering::Relaxed)
                    .is_ok()
        };
        // A model must choose alike whenever it is run again.
        let last = if cfg!(loom) {
            0
        } else {
            LAST.get() % PARTICIPANTS
        };
        if take(&self.first.participants[last]) {
            return &self.first.participants[last];
        }
        loop {
            for (i, p) in self.participants().enumerate() {
                if take(p) {
                    LAST.set(i);
                    return p;
                }
            }
            self.add_block();
        }
    }

    fn add_block(&self) {
        let mut block: &Block<T> = &self.first;
        loop {
            let next = block.next.load(Ordering::Acquire);
            // SAFETY: blocks are never freed before the domain.
            match unsafe { next.as_ref() } {
                Some(b) => block = b,
                None => {
                    let new = Box::into_raw(Block::new());
                    let put =
                        block
                            .next
                            .compare_exchange(next, new, Ordering::AcqRel, Ordering::Acquire);
                    if put.is_err() {
                        // SAFETY: `new` was made just now and nobody else has seen it.
                        drop(unsafe { Box::from_raw(new) });
                    }
                    return;
                }
            }
        }
    }

    /// Takes a participant and shows the epoch there: until the guard is dropped, no number or box that can be reached now
    /// is used again. `release` is called for each id that becomes free.
    pub(crate) fn pin<'d, R: Fn(u32)>(&'d self, release: R) -> Pin<'d, T, R> {
        let participant = self.take();
        let epoch = self.epoch.load(Ordering::Relaxed);
        participant.state.store(epoch << 1 | 1, Ordering::Relaxed);
        // The epoch must be seen by all before anything of the tree is read. If it has moved on since it was read,
        // the old value shown only holds the next move back.
        fence(Ordering::SeqCst);
        Pin {
            domain: self,
            participant,
            release,
        }
    }

    /// Objects inserted less objects removed below a root; exact when nobody is at work.
    pub(crate) fn len(&self, root: usize) -> usize {
        self.participants()
            .map(|p| p.len[root].load(Ordering::Relaxed))
            .sum::<i64>()
            .max(0) as usize
    }

    /// All numbers of a kind that were ever given are below this.
    pub(crate) fn bound(&self, kind: Kind) -> u32 {
        self.unused[kind as usize].load(Ordering::Acquire)
    }

    /// Bytes of the participants (what they hold in lists comes and goes with removals).
    pub(crate) fn bytes(&self) -> usize {
        self.participants().count() * std::mem::size_of::<Participant<T>>()
    }

    /// Moves the epoch on if every pinned participant shows the present one; returns the epoch.
    fn advance(&self) -> u64 {
        let epoch = self.epoch.load(Ordering::Relaxed);
        fence(Ordering::SeqCst);
        for p in self.participants() {
            let state = p.state.load(Ordering::Relaxed);
            if state > TAKEN && state >> 1 != epoch {
                return epoch;
            }
        }
        fence(Ordering::Acquire);
        match self
            .epoch
            .compare_exchange(epoch, epoch + 1, Ordering::AcqRel, Ordering::Relaxed)
        {
            Ok(_) => epoch + 1,
            Err(now) => now,
        }
    }

    /// Frees the bags that are old enough. The caller owns the participant.
    fn reclaim(&self, local: &mut Local<T>, release: &impl Fn(u32)) {
        let epoch = self.epoch.load(Ordering::Acquire);
        while local.bags.front().is_some_and(|b| b.epoch + 2 <= epoch) {
            let Some(bag) = local.bags.pop_front() else {
                return;
            };
            let [nodes, ids] = bag.numbers;
            local.pending -= nodes.len() + ids.len() + bag.boxes.len();
            ids.iter().for_each(|&id| release(id));
            local.free[Kind::Node as usize].extend(nodes);
            local.free[Kind::Id as usize].extend(ids);
        }
        for kind in [Kind::Node, Kind::Id] {
            let free = &mut local.free[kind as usize];
            while free.len() > 2 * BUNDLE {
                self.push_bundle(kind, free.split_off(free.len() - BUNDLE));
            }
        }
    }

    fn push_bundle(&self, kind: Kind, numbers: Vec<u32>) {
        let top = &self.bundles[kind as usize];
        let new = Box::into_raw(Box::new(Bundle {
            numbers,
            next: std::ptr::null_mut(),
        }));
        let mut head = top.load(Ordering::Relaxed);
        loop {
            // SAFETY: `new` is not shared before the CAS succeeds.
            unsafe { (*new).next = head };
            match top.compare_exchange(head, new, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// Pops a bundle. The caller is pinned and retires the box.
    fn pop_bundle(&self, kind: Kind) -> Option<Box<Bundle>> {
        let top = &self.bundles[kind as usize];
        let mut head = top.load(Ordering::Acquire);
        loop {
            // SAFETY: popped bundles are freed by epoch and the caller is pinned: what was on the stack a moment
            // ago can still be read. `next` is not written after the push.
            let next = unsafe { head.as_ref() }?.next;
            match top.compare_exchange(head, next, Ordering::AcqRel, Ordering::Acquire) {
                // SAFETY: the CAS made it ours; others may still read `next`, so the box is retired, not dropped.
                Ok(_) => return Some(unsafe { Box::from_raw(head) }),
                Err(now) => head = now,
            }
        }
    }
}

impl<T> Drop for Domain<T> {
    fn drop(&mut self) {
        for top in &self.bundles {
            let mut head = top.load(Ordering::Relaxed);
            while !head.is_null() {
                // SAFETY: pushed as a box; `&mut self` says that nobody else is here.
                head = unsafe { Box::from_raw(head) }.next;
            }
        }
        let mut next = self.first.next.load(Ordering::Relaxed);
        while !next.is_null() {
            // SAFETY: as above.
            next = unsafe { Box::from_raw(next) }.next.load(Ordering::Relaxed);
        }
    }
}

/// A participant, taken and pinned. Not `Send`: it is given back by the thread that took it.
pub(crate) struct Pin<'d, T: Default, R: Fn(u32)> {
    domain: &'d Domain<T>,
    participant: &'d Participant<T>,
    release: R,
}

impl<T: Default, R: Fn(u32)> Pin<'_, T, R> {
    #[inline]
    fn local(&mut self) -> &mut Local<T> {
        // SAFETY: the participant is ours until the guard is dropped, and `&mut self` says that this is the only borrow.
        unsafe { &mut *self.participant.local.get() }
    }

    /// What the participant's owner keeps from pin to pin.
    #[inline]
    pub(crate) fn kept(&mut self) -> &mut T {
        &mut self.local().kept
    }

    /// A free number; its memory must be reserved by the caller.
    #[inline]
    pub(crate) fn alloc(&mut self, kind: Kind) -> Result<u32, Full> {
        let local = self.local();
        if let Some(number) = local.free[kind as usize].pop() {
            return Ok(number);
        }
        if let Some(number) = local.range[kind as usize].next() {
            return Ok(number);
        }
        self.alloc_slow(kind)
    }

    #[cold]
    fn alloc_slow(&mut self, kind: Kind) -> Result<u32, Full> {
        let k = kind as usize;
        if let Some(mut bundle) = self.domain.pop_bundle(kind) {
            let numbers = std::mem::take(&mut bundle.numbers);
            self.retire_box(bundle);
            self.local().free[k] = numbers;
        } else {
            self.scavenge();
        }
        if let Some(number) = self.local().free[k].pop() {
            return Ok(number);
        }
        let unused = &self.domain.unused[k];
        let mut start = unused.load(Ordering::Relaxed);
        loop {
            // The last number means "none".
            let end = start.saturating_add(RANGE);
            if start == end {
                return Err(Full);
            }
            match unused.compare_exchange_weak(start, end, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => {
                    self.local().range[k] = start + 1..end;
                    return Ok(start);
                }
                Err(now) => start = now,
            }
        }
    }

    /// Takes what lies free in participants that nobody has taken.
    fn scavenge(&mut self) {
        let domain = self.domain;
        for other in domain.participants() {
            if other.useful.load(Ordering::Relaxed) == 0
                || other
                    .state
                    .compare_exchange(EMPTY, TAKEN, Ordering::Acquire, Ordering::Relaxed)
                    .is_err()
            {
                continue;
            }
            // SAFETY: the CAS took the other participant, so its `local` is ours; it is not our own, whose state is not
            // EMPTY.
            let theirs = unsafe { &mut *other.local.get() };
            domain.reclaim(theirs, &self.release);
            for k in 0..2 {
                let mut numbers = std::mem::take(&mut theirs.free[k]);
                self.local().free[k].append(&mut numbers);
            }
            other
                .useful
                .store((theirs.pending > 0) as u32, Ordering::Relaxed);
            other.state.store(EMPTY, Ordering::Release);
        }
    }

    /// Gives back a number that was never put into the tree.
    pub(crate) fn give_back(&mut self, kind: Kind, number: u32) {
        self.local().free[kind as usize].push(number);
    }

    /// The bag of the present epoch.
    fn bag(&mut self) -> &mut Bag {
        // Read after the thing has been taken out: whoever can still reach it is pinned in this epoch or before.
        fence(Ordering::SeqCst);
        let epoch = self.domain.epoch.load(Ordering::Relaxed);
        let local = self.local();
        local.pending += 1;
        if local.bags.back().is_none_or(|b| b.epoch != epoch) {
            local.bags.push_back(Bag {
                epoch,
                numbers: Default::default(),
                boxes: Vec::new(),
            });
        }
        let last = local.bags.len() - 1;
        &mut local.bags[last]
    }

    /// Frees a number that has been taken out of the tree, when nobody can hold it any more.
    pub(crate) fn retire(&mut self, kind: Kind, number: u32) {
        self.bag().numbers[kind as usize].push(number);
    }

    /// Drops a box that others may still read, when nobody can any more.
    pub(crate) fn retire_box(&mut self, garbage: Box<dyn Send>) {
        self.bag().boxes.push(garbage);
    }

    /// Counts an object in (1) or out (-1), below a root.
    #[inline]
    pub(crate) fn count(&mut self, root: usize, change: i64) {
        let len = &self.participant.len[root];
        len.store(len.load(Ordering::Relaxed) + change, Ordering::Relaxed);
    }
}

impl<T: Default, R: Fn(u32)> Drop for Pin<'_, T, R> {
    fn drop(&mut self) {
        let (domain, participant) = (self.domain, self.participant);
        participant.state.store(TAKEN, Ordering::Release);
        // SAFETY: the participant is ours until its state is EMPTY again.
        let local = unsafe { &mut *participant.local.get() };
        if local.pending >= ENOUGH {
            // Alone, two moves free what this very pin retired.
            if domain.advance() < local.bags.back().map_or(0, |b| b.epoch + 2) {
                domain.advance();
            }
            domain.reclaim(local, &self.release);
        }
        let useful = local.pending > 0 || local.free.iter().any(|f| !f.is_empty());
        participant.useful.store(useful as u32, Ordering::Relaxed);
        participant.state.store(EMPTY, Ordering::Release);
    }
}
