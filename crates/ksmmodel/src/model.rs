//! Scans, and what becomes of each page.

use std::cmp::Ordering;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicU8, AtomicUsize, Ordering::Relaxed};
use std::sync::RwLock;
use std::time::Instant;

use rustix::time::{clock_gettime, ClockId};

use crate::rbtree::{Found, Node, RbTree};
use crate::{Checksum, PAGE_SIZE};

/// Pages that a thread takes at a time: small enough to share the end of a scan, large enough not to meet often.
const CHUNK: usize = 256;

/// Scans that a page takes part in before smart scan may skip it, and how many scans are skipped at which age:
/// (age up to, scans skipped). Older pages skip [`SKIP_OLDEST`].
const SKIP_FROM_AGE: u8 = 3;
const SKIP_AT_AGE: [(u8, u8); 3] = [(3, 1), (5, 2), (8, 4)];
const SKIP_OLDEST: u8 = 8;

/// Where a page is: not placed, in the unstable tree, given to the zero page, or, from [`SHARED`] on, in a frame.
const NOWHERE: u32 = 0;
const UNSTABLE: u32 = 1;
const ZERO: u32 = 2;
const SHARED: u32 = 3;

/// The knobs of KSM that the model has.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// How a changed page is told.
    pub checksum: Checksum,
    /// Skip pages that never merge more and more often.
    pub smart_scan: bool,
    /// Tell empty pages apart.
    pub use_zero_pages: bool,
    /// Sharers of a frame at most, 2 or more.
    pub max_page_sharing: u32,
}

impl Default for Config {
    /// The kernel's defaults.
    fn default() -> Self {
        Config {
            checksum: Checksum::Xxh64,
            smart_scan: true,
            use_zero_pages: false,
            max_page_sharing: 256,
        }
    }
}

/// KSM's counters, under KSM's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Frames in use.
    pub pages_shared: u64,
    /// Further pages that use those frames: what is saved.
    pub pages_sharing: u64,
    /// Pages in the unstable tree.
    pub pages_unshared: u64,
    /// Pages in no tree: they changed, or were skipped.
    pub pages_volatile: u64,
    /// Pages given back to the zero page.
    pub ksm_zero_pages: u64,
    /// Pages skipped by smart scan since the start.
    pub pages_skipped: u64,
    /// Scans since the start.
    pub full_scans: u64,
    /// Contents with more than one frame.
    pub stable_node_chains: u64,
    /// Frames of those contents.
    pub stable_node_dups: u64,
}

/// What one scan cost.
#[derive(Clone, Copy, Debug, Default)]
pub struct ScanReport {
    /// CPU-seconds of all threads.
    pub cpu_s: f64,
    /// Seconds from start to end.
    pub wall_s: f64,
    /// Pages compared with `memcmp`.
    pub compared: u64,
}

/// A shared frame. Its bytes are those of any of its sharers.
struct Frame {
    chain: u32,
    sharers: Vec<u32>,
}

/// One content of the stable tree, with its frames.
struct Chain {
    node: Node,
    frames: Vec<u32>,
}

/// What the lock guards.
struct Trees {
    stable: RbTree,
    unstable: RbTree,
    chains: Vec<Chain>,
    free_chains: Vec<u32>,
    frames: Vec<Frame>,
    free_frames: Vec<u32>,
    /// For a page in the unstable tree its node; for a shared page its place among the frame's sharers.
    link: Vec<u32>,
}

/// What a scan remembers of a page; only the thread that scans the page touches it.
#[derive(Default)]
struct Item {
    checksum: AtomicU32,
    age: AtomicU8,
    skips: AtomicU8,
}

/// KSM over an array of pages.
pub struct Model {
    config: Config,
    zero_checksum: u32,
    items: Vec<Item>,
    place: Vec<AtomicU32>,
    trees: RwLock<Trees>,
    skipped: AtomicU64,
    full_scans: u64,
}

impl Model {
    /// A model of `pages` pages, none looked at yet. `None` if `max_page_sharing` is below 2.
    pub fn new(pages: usize, config: Config) -> Option<Model> {
        if config.max_page_sharing < 2 || u32::try_from(pages).is_err() {
            return None;
        }
        Some(Model {
            config,
            zero_checksum: config.checksum.of(&[0; PAGE_SIZE]),
            items: (0..pages).map(|_| Item::default()).collect(),
            place: (0..pages).map(|_| AtomicU32::new(NOWHERE)).collect(),
            trees: RwLock::new(Trees {
                stable: RbTree::new(),
                unstable: RbTree::new(),
                chains: Vec::new(),
                free_chains: Vec::new(),
                frames: Vec::new(),
                free_frames: Vec::new(),
                link: vec![0; pages],
            }),
            skipped: AtomicU64::new(0),
            full_scans: 0,
        })
    }

    /// The number of pages.
    pub fn pages(&self) -> usize {
        self.items.len()
    }

    /// Scans every page once with `threads` threads. `bytes` holds the pages, one after the other.
    ///
    /// # Panics
    /// If `bytes` is not as long as the pages are, or `threads` is 0.
    pub fn scan(&mut self, bytes: &[u8], threads: usize) -> ScanReport {
        assert_eq!(bytes.len(), self.pages() * PAGE_SIZE);
        assert!(threads > 0);
        let start = Instant::now();
        let own = thread_cpu_s();
        let trees = self.trees.get_mut().expect("no thread panicked");
        trees.unstable.clear();
        for place in &mut self.place {
            if *place.get_mut() == UNSTABLE {
                *place.get_mut() = NOWHERE;
            }
        }
        let mut report = ScanReport {
            cpu_s: thread_cpu_s() - own,
            ..ScanReport::default()
        };
        let cursor = AtomicUsize::new(0);
        let model = &*self;
        let work = || {
            let start = thread_cpu_s();
            let mut thread = Thread {
                model,
                bytes,
                compared: 0,
            };
            loop {
                let from = cursor.fetch_add(CHUNK, Relaxed);
                if from >= model.pages() {
                    break;
                }
                for page in from..(from + CHUNK).min(model.pages()) {
                    thread.visit(page as u32);
                }
            }
            (thread.compared, thread_cpu_s() - start)
        };
        let results: Vec<(u64, f64)> = if threads == 1 {
            vec![work()]
        } else {
            std::thread::scope(|scope| {
                let handles: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
                handles
                    .into_iter()
                    .map(|h| h.join().expect("a scanning thread panicked"))
                    .collect()
            })
        };
        for (compared, cpu_s) in results {
            report.compared += compared;
            report.cpu_s += cpu_s;
        }
        self.full_scans += 1;
        report.wall_s = start.elapsed().as_secs_f64();
        report
    }

    /// Tells the model that pages were written: those that were shared have a page of their own again.
    ///
    /// # Panics
    /// If a page does not exist.
    pub fn written(&mut self, pages: &[u32]) {
        let trees = self.trees.get_mut().expect("no thread panicked");
        for &page in pages {
            let place = self.place[page as usize].get_mut();
            if *place >= SHARED {
                trees.leave(*place - SHARED, page);
            }
            if *place != UNSTABLE {
                *place = NOWHERE;
            }
        }
    }

    /// The counters now.
    pub fn counts(&self) -> Counts {
        let trees = self.trees.read().expect("no thread panicked");
        let mut counts = Counts {
            full_scans: self.full_scans,
            pages_skipped: self.skipped.load(Relaxed),
            pages_shared: (trees.frames.len() - trees.free_frames.len()) as u64,
            ..Counts::default()
        };
        for place in &self.place {
            match place.load(Relaxed) {
                NOWHERE => counts.pages_volatile += 1,
                UNSTABLE => counts.pages_unshared += 1,
                ZERO => counts.ksm_zero_pages += 1,
                _ => counts.pages_sharing += 1,
            }
        }
        counts.pages_sharing -= counts.pages_shared;
        for chain in trees.chains.iter().filter(|chain| chain.frames.len() > 1) {
            counts.stable_node_chains += 1;
            counts.stable_node_dups += chain.frames.len() as u64;
        }
        counts
    }

    /// Bytes of the model's own records.
    pub fn metadata_bytes(&self) -> usize {
        let trees = self.trees.read().expect("no thread panicked");
        let sharers: usize = trees.frames.iter().map(|f| f.sharers.capacity()).sum();
        let frames: usize = trees.chains.iter().map(|c| c.frames.capacity()).sum();
        self.pages() * (size_of::<Item>() + size_of::<AtomicU32>() + size_of::<u32>())
            + trees.stable.bytes()
            + trees.unstable.bytes()
            + trees.frames.capacity() * size_of::<Frame>()
            + trees.chains.capacity() * size_of::<Chain>()
            + (sharers + frames + trees.free_frames.capacity() + trees.free_chains.capacity())
                * size_of::<u32>()
    }

    /// For each page the number of its frame, or -1 (zero page: -2).
    pub fn frames(&self) -> Vec<i64> {
        self.place
            .iter()
            .map(|place| match place.load(Relaxed) {
                ZERO => -2,
                shared if shared >= SHARED => i64::from(shared - SHARED),
                _ => -1,
            })
            .collect()
    }

    fn should_skip(&self, page: u32) -> bool {
        let item = &self.items[page as usize];
        let age = item.age.load(Relaxed);
        item.age.store(age.saturating_add(1), Relaxed);
        if !self.config.smart_scan || age < SKIP_FROM_AGE {
            return false;
        }
        match item.skips.load(Relaxed) {
            0 => {
                let skips = SKIP_AT_AGE
                    .iter()
                    .find(|(up_to, _)| age <= *up_to)
                    .map_or(SKIP_OLDEST, |(_, skips)| *skips);
                item.skips.store(skips, Relaxed);
                false
            }
            left => {
                item.skips.store(left - 1, Relaxed);
                self.skipped.fetch_add(1, Relaxed);
                true
            }
        }
    }
}

/// One thread of a scan.
struct Thread<'a> {
    model: &'a Model,
    bytes: &'a [u8],
    compared: u64,
}

impl Thread<'_> {
    fn page(&self, page: u32) -> &[u8] {
        &self.bytes[page as usize * PAGE_SIZE..][..PAGE_SIZE]
    }

    fn compare(&mut self, a: u32, b: u32) -> Ordering {
        self.compared += 1;
        self.page(a).cmp(self.page(b))
    }

    fn search_stable(&mut self, trees: &Trees, page: u32) -> Found {
        trees
            .stable
            .search(|chain| self.compare(page, trees.page_of(chain)))
    }

    fn visit(&mut self, page: u32) {
        let model = self.model;
        let place = &model.place[page as usize];
        if place.load(Relaxed) >= ZERO {
            return;
        }
        if model.should_skip(page) {
            return;
        }
        let checksum = model.config.checksum.of(self.page(page));
        let item = &model.items[page as usize];
        if item.checksum.load(Relaxed) != checksum {
            item.checksum.store(checksum, Relaxed);
            return;
        }
        if model.config.use_zero_pages
            && checksum == model.zero_checksum
            && self.page(page).iter().all(|byte| *byte == 0)
        {
            place.store(ZERO, Relaxed);
            return;
        }
        // Done again when another thread changed the trees in a way that matters here.
        while !self.place(page) {}
    }

    /// Finds a twin of a quiet page, or puts it into the unstable tree. False: the trees changed, do it again.
    fn place(&mut self, page: u32) -> bool {
        let model = self.model;
        let lock = &model.trees;
        let most = model.config.max_page_sharing as usize;
        let stable = {
            let trees = lock.read().expect("no thread panicked");
            match self.search_stable(&trees, page) {
                Found::Equal(node) => Some(trees.stable.owner(node)),
                Found::Absent(_) => None,
            }
        };
        if let Some(chain) = stable {
            // KSM compares once more when it has write-protected the page; so its cost is in the model's too.
            let mut trees = lock.write().expect("no thread panicked");
            let of_chain = trees.page_of(chain);
            let equal = self.compare(page, of_chain) == Ordering::Equal;
            debug_assert!(equal, "bytes do not change in a scan");
            if let Some(frame) = trees.frame_with_room(chain, most) {
                trees.join(frame, page);
                model.place[page as usize].store(SHARED + frame, Relaxed);
                return true;
            }
        }
        let unstable = {
            let trees = lock.read().expect("no thread panicked");
            match trees.unstable.search(|other| self.compare(page, other)) {
                Found::Equal(node) => Ok(trees.unstable.owner(node)),
                Found::Absent(gap) => Err(gap),
            }
        };
        match unstable {
            Err(gap) => {
                let mut trees = lock.write().expect("no thread panicked");
                let Some(node) = trees.unstable.insert(&gap, page) else {
                    return false;
                };
                trees.link[page as usize] = node;
                model.place[page as usize].store(UNSTABLE, Relaxed);
                true
            }
            Ok(twin) => {
                // A second descent of the stable tree, for the place where the new frame goes, as in KSM.
                let target = {
                    let trees = lock.read().expect("no thread panicked");
                    self.search_stable(&trees, page)
                };
                let equal = self.compare(page, twin) == Ordering::Equal;
                debug_assert!(equal, "bytes do not change in a scan");
                let mut trees = lock.write().expect("no thread panicked");
                if model.place[twin as usize].load(Relaxed) != UNSTABLE {
                    return false;
                }
                let chain = match target {
                    Found::Equal(node) => Some(trees.stable.owner(node)),
                    Found::Absent(gap) => trees.new_chain(&gap),
                };
                let Some(chain) = chain else { return false };
                let node = trees.link[twin as usize];
                trees.unstable.remove(node);
                let frame = trees.new_frame(chain);
                for sharer in [twin, page] {
                    trees.join(frame, sharer);
                    model.place[sharer as usize].store(SHARED + frame, Relaxed);
                }
                true
            }
        }
    }
}

impl Trees {
    /// A page that has the content of a chain.
    fn page_of(&self, chain: u32) -> u32 {
        self.frames[self.chains[chain as usize].frames[0] as usize].sharers[0]
    }

    fn frame_with_room(&self, chain: u32, most: usize) -> Option<u32> {
        let has_room = |frame: &&u32| self.frames[**frame as usize].sharers.len() < most;
        self.chains[chain as usize]
            .frames
            .iter()
            .rev()
            .find(has_room)
            .copied()
    }

    fn join(&mut self, frame: u32, page: u32) {
        let sharers = &mut self.frames[frame as usize].sharers;
        self.link[page as usize] = sharers.len() as u32;
        sharers.push(page);
    }

    fn leave(&mut self, frame: u32, page: u32) {
        let at = self.link[page as usize] as usize;
        let sharers = &mut self.frames[frame as usize].sharers;
        sharers.swap_remove(at);
        if let Some(&moved) = sharers.get(at) {
            self.link[moved as usize] = at as u32;
        }
        if !sharers.is_empty() {
            return;
        }
        let chain = self.frames[frame as usize].chain;
        self.free_frames.push(frame);
        let of_chain = &mut self.chains[chain as usize];
        of_chain.frames.retain(|f| *f != frame);
        if of_chain.frames.is_empty() {
            self.stable.remove(of_chain.node);
            self.free_chains.push(chain);
        }
    }

    /// A chain without frames at a gap of the stable tree; `None` if the gap is no more.
    fn new_chain(&mut self, gap: &crate::rbtree::Gap) -> Option<u32> {
        let number = self
            .free_chains
            .last()
            .copied()
            .unwrap_or(self.chains.len() as u32);
        let node = self.stable.insert(gap, number)?;
        let chain = Chain {
            node,
            frames: Vec::new(),
        };
        if self.free_chains.pop().is_some() {
            self.chains[number as usize] = chain;
        } else {
            self.chains.push(chain);
        }
        Some(number)
    }

    fn new_frame(&mut self, chain: u32) -> u32 {
        let frame = Frame {
            chain,
            sharers: Vec::new(),
        };
        let number = match self.free_frames.pop() {
            Some(number) => {
                self.frames[number as usize] = frame;
                number
            }
            None => {
                self.frames.push(frame);
                (self.frames.len() - 1) as u32
            }
        };
        self.chains[chain as usize].frames.push(number);
        number
    }
}

/// CPU-seconds of the calling thread.
fn thread_cpu_s() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

#[cfg(test)]
mod tests;
