//! The fuzz target of the SD tree: `make fuzz`. What the bytes mean, and what is checked, is in `model.rs`.
#![no_main]

mod model;

libfuzzer_sys::fuzz_target!(|data: &[u8]| model::run(data));
