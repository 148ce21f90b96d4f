//! GPUs that may be parked and have a server for now: they go to the server when it comes, and come back after it.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_util::future::LocalBoxFuture;

use super::{ParkGroup, Parkable, Surroundings, group_name};
use crate::config::Park;
use crate::gpu::GpuInfo;

/// A server that goes has given its clocks back after so long.
const SOON: Duration = Duration::from_millis(400);
/// A GPU that could not be taken back is tried again after so long.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

/// Opens the group of a GPU without a server, off the loop's thread.
pub(crate) type ParkOpener =
    Rc<dyn Fn(&Parkable, &Park) -> LocalBoxFuture<'static, anyhow::Result<ParkGroup>>>;

/// GPUs that have a server for now, by index; with the moment from which they may be taken back, or none while that is
/// tried.
#[derive(Debug, Default)]
pub(crate) struct Yielded(BTreeMap<u32, Option<Instant>>);

impl Yielded {
    pub(crate) fn insert(&mut self, gpu: &GpuInfo) {
        self.0.insert(gpu.index, Some(Instant::now()));
    }
}

impl Surroundings {
    /// Servers have the GPUs that `are_served`: the names of the groups that have to end for that.
    pub(in crate::daemon) fn yield_to(&mut self, are_served: impl Fn(&GpuInfo) -> bool) -> Vec<String> {
        for due in self.yielded.0.values_mut().flatten() {
            *due = Instant::now() + SOON;
        }
        let served: Vec<&GpuInfo> =
            self.gpus.iter().map(|gpu| &gpu.info).filter(|gpu| are_served(gpu)).collect();
        served.iter().for_each(|gpu| self.yielded.insert(gpu));
        served.into_iter().map(group_name).collect()
    }

    /// Begins to take back a GPU that is `free`, if there is one: its index, and its group when that is open.
    pub(in crate::daemon) fn take_back(
        &mut self,
        free: impl Fn(&GpuInfo) -> bool,
    ) -> Option<(GpuInfo, LocalBoxFuture<'static, anyhow::Result<ParkGroup>>)> {
        let now = Instant::now();
        let due =
            |gpu: &&Parkable| matches!(self.yielded.0.get(&gpu.info.index), Some(Some(due)) if *due <= now);
        let gpu = self.gpus.iter().filter(due).find(|gpu| free(&gpu.info))?;
        self.yielded.0.insert(gpu.info.index, None);
        Some((gpu.info.clone(), (self.opener)(gpu, &self.config.park)))
    }

    /// The GPU is parked again as before, or could not be taken back.
    pub(in crate::daemon) fn taken_back(&mut self, gpu: &GpuInfo, is_back: bool) {
        if is_back {
            self.yielded.0.remove(&gpu.index);
        } else {
            self.yielded.0.insert(gpu.index, Some(Instant::now() + AGAIN_AFTER));
        }
    }
}
