//! Keeps what was measured of levers for the next run: a slow disk never holds up the loop.

use std::path::PathBuf;
use std::time::Instant;

use super::aside::Aside;
use crate::gpu::GpuInfo;
use crate::park::levers::LeverBook;
use crate::seldom::Seldom;
use crate::store::save_levers;

/// Who writes books of levers.
pub(crate) type Keeper = Aside<(GpuInfo, LeverBook)>;

/// Starts to keep them in this directory.
pub(crate) fn keep_in(dir: PathBuf) -> std::io::Result<Keeper> {
    Keeper::spawn("agft-levers", move |received| {
        let mut seldom = Seldom::default();
        for (gpu, book) in received {
            if let Err(error) = save_levers(&dir, &gpu, 1, &book)
                && let Some(times) = seldom.may_say("save", Instant::now())
            {
                tracing::warn!(
                    %gpu, %error, not_said_before = times,
                    "what parking saves is not stored (model.save_dir): the next run measures it anew"
                );
            }
        }
    })
}
