//! The model against what the contents predict.

use super::*;
use std::collections::HashMap;

/// Pages of which each number's bytes are its content, number 0 being the empty page.
fn pages(numbers: &[u64]) -> Vec<u8> {
    let mut bytes = vec![0; numbers.len() * PAGE_SIZE];
    for (page, number) in bytes.chunks_exact_mut(PAGE_SIZE).zip(numbers) {
        page[PAGE_SIZE - 8..].copy_from_slice(&number.to_be_bytes());
    }
    bytes
}

fn scanned(numbers: &[u64], config: Config, scans: usize, threads: usize) -> Model {
    let bytes = pages(numbers);
    let mut model = Model::new(numbers.len(), config).expect("a valid configuration");
    for _ in 0..scans {
        model.scan(&bytes, threads);
    }
    model
}

fn random(count: usize, values: u64, seed: u64) -> Vec<u64> {
    let mut x = seed;
    (0..count)
        .map(|_| {
            x = x
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            1 + (x >> 33) % values
        })
        .collect()
}

fn expected(numbers: &[u64], most: u64) -> Counts {
    let mut copies = HashMap::new();
    for number in numbers {
        *copies.entry(*number).or_insert(0u64) += 1;
    }
    let mut counts = Counts::default();
    for &n in copies.values() {
        // A rest of one page after full frames has no twin to make a frame with.
        let alone = u64::from(n % most == 1);
        let frames = n / most + u64::from(n % most > 1);
        counts.pages_shared += frames;
        counts.pages_sharing += n - alone - frames;
        counts.pages_unshared += alone;
    }
    counts
}

fn assert_counts(model: &Model, want: Counts) {
    let got = model.counts();
    let all = |c: Counts| (c.pages_shared, c.pages_sharing, c.pages_unshared);
    assert_eq!(all(got), all(want));
    assert_eq!(got.pages_volatile, 0);
}

#[test]
fn the_first_scan_merges_nothing_and_the_second_everything() {
    let numbers = random(3000, 1000, 1);
    let config = Config::default();
    let first = scanned(&numbers, config, 1, 1);
    assert_eq!(first.counts().pages_volatile, 3000);
    assert_counts(&scanned(&numbers, config, 2, 1), expected(&numbers, 256));
}

#[test]
fn every_checksum_and_number_of_threads_ends_in_the_same_counts() {
    let numbers = random(6000, 1500, 2);
    for (_, checksum) in Checksum::ALL {
        for threads in [1, 2, 4] {
            let model = scanned(
                &numbers,
                Config {
                    checksum,
                    ..Config::default()
                },
                3,
                threads,
            );
            assert_counts(&model, expected(&numbers, 256));
        }
    }
}

#[test]
fn pages_in_one_frame_are_equal_and_frames_keep_to_the_cap() {
    let numbers = random(4000, 20, 3);
    let model = scanned(
        &numbers,
        Config {
            max_page_sharing: 7,
            ..Config::default()
        },
        3,
        3,
    );
    let mut of_frame: HashMap<i64, Vec<u64>> = HashMap::new();
    for (frame, number) in model.frames().into_iter().zip(&numbers) {
        of_frame.entry(frame).or_default().push(*number);
    }
    of_frame.remove(&-1);
    assert!(of_frame
        .values()
        .all(|sharers| sharers.len() <= 7 && sharers.windows(2).all(|w| w[0] == w[1])));
    let counts = model.counts();
    assert_eq!(counts.stable_node_chains, 20);
    assert_eq!(counts.stable_node_dups, counts.pages_shared);
}

#[test]
fn equal_pages_with_a_cap_share_as_many_frames_as_the_cap_predicts() {
    let numbers = vec![5; 2000];
    let model = scanned(
        &numbers,
        Config {
            max_page_sharing: 16,
            ..Config::default()
        },
        2,
        1,
    );
    let counts = model.counts();
    assert_eq!((counts.pages_shared, counts.pages_sharing), (125, 1875));
}

#[test]
fn empty_pages_go_to_the_zero_page_only_when_asked() {
    let numbers = vec![0, 0, 0, 1, 2];
    let with = scanned(
        &numbers,
        Config {
            use_zero_pages: true,
            ..Config::default()
        },
        2,
        1,
    )
    .counts();
    assert_eq!(
        (with.ksm_zero_pages, with.pages_shared, with.pages_unshared),
        (3, 0, 2)
    );
    let without = scanned(&numbers, Config::default(), 2, 1).counts();
    assert_eq!(
        (
            without.ksm_zero_pages,
            without.pages_shared,
            without.pages_sharing
        ),
        (0, 1, 2)
    );
}

#[test]
fn a_write_breaks_sharing_and_the_last_sharer_frees_the_frame() {
    let mut numbers = vec![9, 9, 9, 4];
    let mut model = scanned(&numbers, Config::default(), 2, 1);
    numbers[0] = 7;
    model.written(&[0]);
    assert_eq!(model.counts().pages_sharing, 1);
    // The page changed, so the next scan only notes its checksum.
    model.scan(&pages(&numbers), 1);
    assert_eq!(model.counts().pages_volatile, 1);
    model.written(&[1, 2]);
    let counts = model.counts();
    assert_eq!((counts.pages_shared, counts.pages_sharing), (0, 0));
}

#[test]
fn random_writes_between_scans_end_in_what_the_contents_predict() {
    for seed in 0..20 {
        let mut numbers = random(500, 120, seed);
        let config = Config {
            smart_scan: false,
            max_page_sharing: 5,
            ..Config::default()
        };
        let mut model = Model::new(numbers.len(), config).expect("valid");
        for round in 0..6 {
            let changed: Vec<u32> = random(60, 500, seed * 100 + round)
                .iter()
                .map(|v| *v as u32 - 1)
                .collect();
            for (page, number) in changed.iter().zip(random(60, 120, round + 999)) {
                numbers[*page as usize] = number;
            }
            model.written(&changed);
            model.scan(&pages(&numbers), 2);
        }
        for _ in 0..3 {
            model.scan(&pages(&numbers), 2);
        }
        let frames = model.frames();
        let mut seen: HashMap<i64, u64> = HashMap::new();
        for (frame, number) in frames.iter().zip(&numbers).filter(|(f, _)| **f >= 0) {
            assert_eq!(
                *seen.entry(*frame).or_insert(*number),
                *number,
                "seed {seed}: unequal pages share"
            );
        }
        let twins = |n: u64| numbers.iter().filter(|m| **m == n).count();
        for (page, frame) in frames.iter().enumerate() {
            assert!(
                *frame >= 0
                    || twins(numbers[page]) % 5 == 1
                    || twins(numbers[page]) == 1
                    || twins(numbers[page]) > 5,
                "seed {seed}: page {page} has a twin and was not merged"
            );
        }
    }
}

#[test]
fn smart_scan_skips_pages_that_never_merge_up_to_eight_scans() {
    let numbers: Vec<u64> = (1..=100).collect();
    let skipped = |scans| {
        scanned(&numbers, Config::default(), scans, 1)
            .counts()
            .pages_skipped
    };
    assert_eq!(skipped(4), 0);
    assert_eq!(skipped(5), 100);
    assert!(skipped(60) > 100 * 60 * 3 / 4);
    let without = scanned(
        &numbers,
        Config {
            smart_scan: false,
            ..Config::default()
        },
        60,
        1,
    );
    assert_eq!(without.counts().pages_skipped, 0);
}

#[test]
fn a_cap_below_two_is_refused() {
    assert!(Model::new(
        1,
        Config {
            max_page_sharing: 1,
            ..Config::default()
        }
    )
    .is_none());
}
