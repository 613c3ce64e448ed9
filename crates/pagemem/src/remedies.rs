//! Remedies that tests of tests switch off, to show that the tests can fail.

use std::sync::OnceLock;

/// Whether `remedy` is switched off by the guardian's environment (`PAGEONE_WITHOUT=mend,forks,verify`).
pub fn without(remedy: &str) -> bool {
    static OFF: OnceLock<Vec<String>> = OnceLock::new();
    OFF.get_or_init(|| {
        let list = std::env::var("PAGEONE_WITHOUT").unwrap_or_default();
        list.split(',').map(str::to_owned).collect()
    })
    .iter()
    .any(|r| r == remedy)
}
