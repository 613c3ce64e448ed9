//! Remedies that tests of tests switch off, to show that the tests can fail, and deaths at a chosen instant.
//!
//! Only with the feature `failpoints`, which nothing that users get is built with. Without it all of this is nothing:
//! every remedy is there whatever the environment says, and no code asks.

#[cfg(feature = "failpoints")]
mod armed;

#[cfg(feature = "failpoints")]
pub use armed::{die, step, without};

/// Whether `remedy` is switched off: never, in this build.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub const fn without(_remedy: &str) -> bool {
    false
}

/// Where tests have this process die before a step that changes a target: nothing, in this build.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub const fn step() {}
