//! `pageone._native`: PyO3 glue. Arrays in, arrays out, errors mapped; no logic lives here.
//!
//! One submodule a core crate: `one` (sdtree), `mem` (pagemem), `census`, `ksm` (ksmmodel), `queue` (crossbeam), `contenders` (bench only).
//! Every call that may take longer than a few microseconds releases the GIL.

use pyo3::prelude::*;

mod census;
#[cfg(feature = "bench")]
mod contenders;
mod ksm;
mod mem;
mod mem_live;
mod mem_read;
mod one;
mod queue;

#[pymodule]
mod _native {
    use super::*;

    #[pymodule_init]
    fn init(m: &Bound<'_, PyModule>) -> PyResult<()> {
        one::register(m)?;
        mem::register(m)?;
        census::register(m)?;
        ksm::register(m)?;
        queue::register(m)?;
        #[cfg(feature = "bench")]
        contenders::register(m)?;
        Ok(())
    }
}
