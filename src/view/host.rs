//! One picture of the process: every server that it serves, and the GPUs that it parks for nobody.

use serde::{Deserialize, Serialize};

use super::against::Source;
use super::park::{ParkStanding, ParkState, ParkedGpu};
use super::state::State;
use crate::park::instances::ToldInstance;

/// Everything that runs in one agft, at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostState {
    /// agft's version.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// Start of the run, Unix seconds.
    pub started_unix_s: f64,
    /// Moment of the newest part of this picture, Unix seconds.
    pub at_unix_s: f64,
    /// Decides without writing clocks.
    pub dry_run: bool,
    /// The servers, in the order in which they came.
    pub servers: Vec<State>,
    /// GPUs without a server, if there are any.
    pub park: Option<ParkState>,
    /// Instances that supervisors tell of.
    #[serde(default)]
    pub instances: Vec<ToldInstance>,
}

impl HostState {
    /// This process, started at this Unix time, with nothing to show so far.
    pub fn new(started_unix_s: f64, dry_run: bool) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            started_unix_s,
            at_unix_s: started_unix_s,
            dry_run,
            servers: Vec::new(),
            park: None,
            instances: Vec::new(),
        }
    }

    /// The same with these parts, of the moment of the newest of them.
    #[must_use]
    pub(crate) fn with(self, servers: Vec<State>, park: Option<ParkState>) -> Self {
        let moments = servers.iter().map(|state| state.at_unix_s);
        let newest = moments.chain(park.as_ref().map(|park| park.at_unix_s)).reduce(f64::max);
        Self { at_unix_s: newest.unwrap_or(self.started_unix_s), servers, park, ..self }
    }

    /// The server of this name.
    pub fn server(&self, name: &str) -> Option<&State> {
        self.servers.iter().find(|state| state.name == name)
    }

    /// A line for each server, then one for each GPU without one.
    pub fn rows(&self) -> Vec<Row> {
        let parked = self.park.iter().flat_map(|park| &park.gpus);
        self.servers.iter().map(Row::of).chain(parked.map(Row::of_parked)).collect()
    }
}

/// A server, or a GPU without one, in a few words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The server's name; empty without a server.
    pub name: String,
    /// Indices of the GPUs.
    pub gpus: String,
    /// What is done with them.
    pub mode: &'static str,
    /// Power of all of them; parked or quiet, its mean.
    pub power: String,
    /// Energy against default clocks, measured with its 95 % interval or estimated; what parking saved.
    pub energy: String,
    /// Are the latency limits kept?
    pub limits: String,
}

impl Row {
    /// What the columns are.
    pub(crate) const HEAD: [&'static str; 6] = ["server", "GPUs", "mode", "power", "energy", "limits"];

    /// The columns.
    pub fn cells(&self) -> [&str; 6] {
        [&self.name, &self.gpus, self.mode, &self.power, &self.energy, &self.limits]
    }

    fn of(state: &State) -> Self {
        let verdict = &state.verdict;
        let energy = verdict.saved.map_or("not known yet".to_owned(), |saved| {
            let kind = if verdict.source == Some(Source::Holdout) { "measured" } else { "estimate" };
            format!("{:+.1} ± {:.1} % ({kind})", -100.0 * saved.value, 100.0 * saved.half_width)
        });
        let broken = state.round.as_ref().and_then(|round| round.violated.as_ref());
        let limits = match (state.limits, broken) {
            (None, _) => "none".to_owned(),
            (Some(_), Some(which)) => format!("{} BROKEN", which.to_uppercase()),
            (Some(_), None) => "kept".to_owned(),
        };
        Self {
            name: state.name.clone(),
            gpus: state.gpu_indices(),
            mode: state.mode.name(),
            power: watts(state.gpus.iter().map(|gpu| gpu.power_w).sum()),
            energy,
            limits,
        }
    }

    fn of_parked(gpu: &ParkedGpu) -> Self {
        let saved = gpu.figures.saved.map(|saved| saved.joules).or(gpu.figures.saved_about_j);
        let power = match gpu.state {
            ParkStanding::Parked => gpu.figures.parked_power_w,
            ParkStanding::Quiet => gpu.figures.idle_power_w,
            ParkStanding::Serving | ParkStanding::Hot | ParkStanding::Paused => None,
        };
        Self {
            name: String::new(),
            gpus: gpu.index.to_string(),
            mode: gpu.state.name(),
            power: watts(power),
            energy: saved
                .map_or("unknown".to_owned(), |saved| format!("{:.1} kJ saved by parking", saved / 1e3)),
            limits: String::new(),
        }
    }
}

/// Rows as lines with columns under each other.
#[derive(Debug, Clone, Copy)]
pub struct Table([usize; 6]);

impl Table {
    /// As wide as these rows need it, and what the columns are.
    pub fn of(rows: &[Row]) -> Self {
        let lines = || rows.iter().map(Row::cells).chain([Row::HEAD]);
        Self(std::array::from_fn(|column| {
            lines().filter_map(|cells| Some(cells.get(column)?.chars().count())).max().unwrap_or(0)
        }))
    }

    /// One line.
    pub fn line(&self, cells: [&str; 6]) -> String {
        let padded = cells.iter().zip(self.0).map(|(cell, width)| format!("{cell:width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    }
}

fn watts(power: Option<f64>) -> String {
    power.map_or("unknown".to_owned(), |power| format!("{power:.0} W"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::testing;

    #[test]
    fn every_server_and_every_parked_gpu_has_a_row() {
        let rows = testing::host().rows();
        let cells: Vec<[&str; 6]> = rows.iter().map(Row::cells).collect();
        assert_eq!(cells[0][..4], ["chat", "0", "EXPLOITATION", "152 W"]);
        assert!(cells[0][4].starts_with("-25.0 ± ") && cells[0][4].ends_with("(measured)"), "{cells:?}");
        assert_eq!(cells[0][5], "kept");
        assert_eq!(cells[1][..4], ["code", "1,2", "PAUSED", "303 W"]);
        assert_eq!(cells[1][4..], ["-25.0 ± 2.9 % (estimate)", "TPOT BROKEN"]);
        assert_eq!(cells[2], ["", "3", "PARKED", "50 W", "18.0 kJ saved by parking", ""]);
    }

    #[test]
    fn what_is_not_known_is_said() {
        let mut host = testing::host();
        let code = &mut host.servers[1];
        (code.gpus[0].power_w, code.limits) = (None, None);
        code.estimate = super::super::Estimate::default();
        code.verdict = super::super::Verdict::of(code);
        assert_eq!(host.rows()[1].cells()[3..], ["unknown", "not known yet", "none"]);
    }

    #[test]
    fn moment_is_that_of_the_newest_part_and_of_the_start_without_any() {
        let host = testing::host();
        approx::assert_relative_eq!(host.at_unix_s, host.servers[0].at_unix_s + 0.5);
        let nobody = HostState::new(5.0, false).with(Vec::new(), None);
        approx::assert_relative_eq!(nobody.at_unix_s, 5.0);
        assert_eq!(serde_json::from_str::<HostState>(&serde_json::to_string(&host).unwrap()).unwrap(), host);
    }
}
