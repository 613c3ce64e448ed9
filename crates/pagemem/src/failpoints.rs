//! Failpoints: safeguards that tests of tests leave out, to show that tests can fail, and deaths at a chosen instant.
//!
//! Only with the feature `failpoints`, which nothing that users get is built with. Without it all of this is nothing:
//! every safeguard is there whatever the environment says, and no code asks.

#[cfg(feature = "failpoints")]
mod armed;

#[cfg(feature = "failpoints")]
pub use armed::{active, die, step};

/// Whether the safeguard `name` is to be left out: never, in this build.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub const fn active(_name: &str) -> bool {
    false
}

/// Where tests have this process die before a step that changes a target: nothing, in this build.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub const fn step() {}
