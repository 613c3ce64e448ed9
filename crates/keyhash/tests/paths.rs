//! The fast paths against the portable one, and what the hash promises.

use keyhash::{
    equal_pairs, first_diff, first_diff_bit, hash64, hash64_four, hash64_lines_four,
    hash64_lines_on, hash64_on, hash64_rows, is_zero, Key, Path,
};

/// A small generator, so that the crate needs no dependency (xorshift64*).
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.next() as u8).collect()
    }
}

const LENGTHS: [usize; 24] = [
    0, 1, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 255, 256, 257, 1000, 4095, 4096, 4097, 8192,
    8193, 12288, 20000,
];

#[test]
fn every_path_gives_the_same_hash() {
    let mut rng = Rng(1);
    let key = Key::from_seed(b"paths");
    for n in LENGTHS {
        for shift in 0..3 {
            let buffer = rng.bytes(n + shift);
            let data = &buffer[shift..];
            let want = hash64_on(&key, data, Path::Portable);
            assert_eq!(
                hash64_on(&key, data, Path::AesNi),
                want,
                "AES-NI, {n} bytes"
            );
            assert_eq!(hash64_on(&key, data, Path::Vaes), want, "VAES, {n} bytes");
            assert_eq!(hash64(&key, data), want);
        }
    }
}

#[test]
fn four_side_by_side_give_the_same_hashes_as_one_by_one() {
    let mut rng = Rng(9);
    let key = Key::from_seed(b"four");
    for n in LENGTHS {
        let data: [Vec<u8>; 4] = std::array::from_fn(|_| rng.bytes(n));
        let want = data.each_ref().map(|d| hash64(&key, d));
        let four = data.each_ref().map(Vec::as_slice);
        assert_eq!(hash64_four(&key, four), want, "{n} bytes");
        // Of different lengths, too.
        let cut = [four[0], &four[1][n / 2..], four[2], &four[3][..n / 3]];
        let want = cut.map(|d| hash64(&key, d));
        assert_eq!(hash64_four(&key, cut), want, "{n} bytes, some cut");
    }
}

#[test]
fn pairs_side_by_side_are_equal_where_every_byte_is() {
    let mut rng = Rng(10);
    for n in [0usize, 1, 31, 32, 63, 64, 127, 128, 129, 300, 4096, 5000] {
        let (a, b) = (rng.bytes(n), rng.bytes(n));
        assert_eq!(equal_pairs([&a, &b], [&a, &b]), [true; 2], "{n} bytes");
        for at in (0..n).step_by(1 + n / 50).chain(n.checked_sub(1)) {
            let mut c = b.clone();
            c[at] ^= 1;
            assert_eq!(equal_pairs([&a, &b], [&a, &c]), [true, false]);
            assert_eq!(equal_pairs([&c, &b], [&b, &b]), [false, true]);
            assert_eq!(equal_pairs([&b, &c], [&c, &b]), [false; 2]);
        }
        assert_eq!(equal_pairs([&a, &b], [&a, &b[n / 2..]]), [true, n <= 1]);
    }
}

#[test]
fn every_path_gives_the_same_hash_of_lines() {
    let mut rng = Rng(2);
    let key = Key::from_seed(b"lines");
    for n in [1usize, 63, 64, 65, 100, 4096, 5000] {
        let data = rng.bytes(n);
        let lines: Vec<u32> = (0..8).map(|_| (rng.next() % n as u64) as u32).collect();
        let want = hash64_lines_on(&key, &data, &lines, Path::Portable);
        assert_eq!(hash64_lines_on(&key, &data, &lines, Path::AesNi), want);
        assert_eq!(hash64_lines_on(&key, &data, &lines, Path::Vaes), want);
        let others: [Vec<u8>; 3] = std::array::from_fn(|i| rng.bytes(n + i / 2));
        let four = [&data, &others[0], &others[1], &others[2]].map(Vec::as_slice);
        let want = four.map(|d| hash64_lines_on(&key, d, &lines, Path::Portable));
        assert_eq!(
            hash64_lines_four(&key, four, &lines),
            want,
            "four, one longer"
        );
        let four = [four[0], four[1], four[1], four[0]];
        let want = [want[0], want[1], want[1], want[0]];
        assert_eq!(hash64_lines_four(&key, four, &lines), want, "four");
    }
}

#[test]
fn lines_that_are_not_asked_for_do_not_count_and_those_asked_for_do() {
    let key = Key::from_seed(b"lines");
    let mut data = vec![7u8; 4096];
    let lines = [0u32, 1024, 4032];
    let before = hash64_lines_on(&key, &data, &lines, keyhash::path());
    data[500] ^= 1;
    assert_eq!(
        hash64_lines_on(&key, &data, &lines, keyhash::path()),
        before
    );
    for at in [0usize, 63, 1024, 1087, 4032, 4095] {
        data[at] ^= 1;
        assert_ne!(
            hash64_lines_on(&key, &data, &lines, keyhash::path()),
            before,
            "byte {at}"
        );
        data[at] ^= 1;
    }
}

#[test]
fn the_length_is_part_of_the_input() {
    let key = Key::from_seed(b"length");
    let zeros = vec![0u8; 10000];
    let mut seen: Vec<u64> = (0..10000).map(|n| hash64(&key, &zeros[..n])).collect();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), 10000);
}

#[test]
fn every_single_bit_of_a_page_changes_the_hash_and_flips_half_of_it() {
    let key = Key::from_seed(b"bits");
    let mut page = Rng(3).bytes(4096);
    let base = hash64(&key, &page);
    let mut seen = vec![base];
    let mut flipped = 0u64;
    for bit in 0..32768 {
        page[bit / 8] ^= 0x80 >> (bit % 8);
        let m = hash64(&key, &page);
        flipped += (m ^ base).count_ones() as u64;
        seen.push(m);
        page[bit / 8] ^= 0x80 >> (bit % 8);
    }
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), 32769, "one-bit neighbours must not meet");
    let mean = flipped as f64 / 32768.0;
    assert!(
        (mean - 32.0).abs() < 0.2,
        "mean of flipped bits {mean}, 32 expected"
    );
}

#[test]
fn swapped_blocks_and_moved_bytes_do_not_meet() {
    let key = Key::from_seed(b"swap");
    let mut rng = Rng(4);
    let page = rng.bytes(12288);
    let base = hash64(&key, &page);
    for _ in 0..1000 {
        let (i, j) = ((rng.next() % 768) as usize, (rng.next() % 768) as usize);
        if i == j {
            continue;
        }
        let mut other = page.clone();
        for k in 0..16 {
            other.swap(16 * i + k, 16 * j + k);
        }
        assert_ne!(hash64(&key, &other), base, "blocks {i} and {j} swapped");
    }
}

#[test]
fn prefixes_of_the_hash_spread_structured_inputs_like_random_ones() {
    // 65,536 counters in the tail of one page, thrown into 65,536 bins by the top 16 bits: the fullest bin of a
    // random throw holds 8 to 10.
    let key = Key::from_seed(b"spread");
    let mut page = vec![0xaau8; 4096];
    let mut bins = vec![0u32; 65536];
    for v in 0..65536u64 {
        page[4088..].copy_from_slice(&v.to_be_bytes());
        bins[(hash64(&key, &page) >> 48) as usize] += 1;
    }
    let fullest = bins.iter().max().copied().unwrap_or(0);
    assert!(fullest <= 13, "fullest bin {fullest}");
    let empty = bins.iter().filter(|&&b| b == 0).count() as f64 / 65536.0;
    assert!(
        (empty - (-1f64).exp()).abs() < 0.01,
        "share of empty bins {empty}"
    );
}

#[test]
fn another_seed_gives_another_hash_and_the_same_seed_the_same() {
    let data = Rng(5).bytes(4096);
    let of = |seed: &[u8]| hash64(&Key::from_seed(seed), &data);
    assert_eq!(of(b"a"), of(b"a"));
    assert_ne!(of(b"a"), of(b"b"));
    assert_ne!(of(b"a"), of(b"a\0"));
    assert_ne!(of(b""), of(b"\0"));
}

#[test]
fn rows_are_hashed_as_they_are_one_by_one() {
    let key = Key::from_seed(b"rows");
    let rows = Rng(6).bytes(100 * 77);
    let mut out = vec![0u64; 100];
    hash64_rows(&key, &rows, 77, &mut out);
    for (i, m) in out.iter().enumerate() {
        assert_eq!(*m, hash64(&key, &rows[i * 77..(i + 1) * 77]));
    }
}

#[test]
fn a_key_does_not_show_its_secret() {
    assert_eq!(format!("{:?}", Key::from_seed(b"x")), "Key(secret)");
}

#[test]
fn zero_is_told_from_one_bit_at_every_place() {
    for n in [
        0usize, 1, 7, 8, 63, 64, 65, 255, 256, 257, 320, 321, 4096, 4097,
    ] {
        let mut data = vec![0u8; n];
        assert!(is_zero(&data), "{n} zeros");
        for i in 0..n {
            data[i] = 1;
            assert!(!is_zero(&data), "{n} bytes, byte {i} set");
            data[i] = 0;
        }
    }
}

#[test]
fn the_first_difference_is_found_at_every_place() {
    let mut rng = Rng(7);
    for n in [
        0usize, 1, 7, 8, 9, 31, 32, 33, 63, 64, 65, 127, 128, 129, 191, 192, 193, 300, 4096, 4099,
    ] {
        let a = rng.bytes(n);
        let mut b = a.clone();
        assert_eq!(first_diff(&a, &b), None);
        for i in (0..n).rev() {
            // Everything behind differs too, so that only the first counts.
            b[i] ^= 0x10;
            assert_eq!(first_diff(&a, &b), Some(i), "{n} bytes");
            assert_eq!(first_diff_bit(&a, &b), Some(8 * i + 3));
        }
    }
    assert_eq!(first_diff(b"abc", b"abcd"), None);
    assert_eq!(first_diff_bit(b"\x80", b"\x00"), Some(0));
}
