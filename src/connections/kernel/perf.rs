//! Connection events without BPF: the same tracepoint through `perf_event_open(2)`, one ring for each CPU. The only file
//! that names perf_event.
//!
//! The records have no network namespace, and there is nothing here that could tell of requests without a wake-up for
//! each segment.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use perf_event::data::Record;
use perf_event::events::Tracepoint;
use perf_event::{Builder, Clock, ReadFormat, SampleFlag, Sampler};

use super::News;
use super::diagnose::Facts;
use super::format::{Format, cpus, filter};
use crate::connections::WatchSettings;

/// Where tracefs is; the second place is that of old kernels.
const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
const FORMAT: &str = "events/sock/inet_sock_set_state/format";
const CPUS: &str = "/sys/devices/system/cpu/online";
/// Readings of all rings in a row: under a storm of events, nothing else would ever be done.
const MOST_PASSES: usize = 64;

/// The tracepoint on every CPU; it is left alone when this goes.
#[derive(Debug)]
pub(in crate::connections) struct Rings {
    format: Format,
    rings: Vec<Ring>,
}

struct Ring {
    sampler: Sampler,
    /// Losses that were told of: with the next event for which there was room.
    told_lost: u64,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ring({})", self.sampler.as_raw_fd())
    }
}

impl Rings {
    /// Opens the tracepoint on every CPU.
    /// Errors: Why that cannot be, in plain words and with what would help.
    pub(super) fn attach(settings: &WatchSettings) -> Result<Self, String> {
        if settings.netns.is_some() {
            return Err("they do not tell of the network namespace, and one was chosen".to_owned());
        }
        let format = format(settings)?;
        let online = fs::read_to_string(CPUS).map_err(|error| format!("{CPUS}: {error}"))?;
        let online = cpus(&online).ok_or_else(|| format!("{CPUS} is no list of CPUs"))?;
        let bytes = settings.ring_bytes as usize / online.len().max(1);
        let open = |cpu| open(&format, cpu, bytes, &settings.ports);
        let rings = online.into_iter().map(open).collect::<io::Result<_>>();
        let rings =
            rings.map_err(|error| Facts::gather(&settings.kernel_types).without_perf(&error.to_string()))?;
        Ok(Self { format, rings })
    }

    /// As [`KernelEvents::drain`](super::KernelEvents::drain). Of two events on different CPUs the later one may be read
    /// first, so the rings are read until nothing is left, and what was read is put in order by the kernel's clock.
    pub(super) fn drain(&mut self) -> Vec<News> {
        let mut all = Vec::new();
        for _ in 0..MOST_PASSES {
            let before = all.len();
            for ring in &mut self.rings {
                while let Some(record) = ring.sampler.next_record() {
                    match record.parse_record() {
                        Ok(Record::Sample(sample)) => {
                            let news = sample.raw().and_then(|raw| self.format.decode(raw));
                            all.extend(news.map(|news| (sample.time(), news)));
                        }
                        Ok(Record::Lost(lost)) => ring.told_lost += lost.lost,
                        _ => {}
                    }
                }
            }
            if all.len() == before {
                break;
            }
        }
        all.sort_by_key(|(time, _)| *time);
        all.into_iter().map(|(_, news)| news).collect()
    }

    /// How many events there was no room for, at all ports together: that is all the kernel tells.
    pub(super) fn lost(&mut self) -> u64 {
        self.rings.iter_mut().map(Ring::lost).sum()
    }

    /// As [`KernelEvents::readable`](super::KernelEvents::readable).
    pub(super) fn readable(&self) -> Vec<BorrowedFd<'_>> {
        self.rings.iter().map(Ring::descriptor).collect()
    }

    /// As [`KernelEvents::detach`](super::KernelEvents::detach).
    pub(super) fn detach(&mut self) {
        for ring in &mut self.rings {
            let _ = ring.sampler.disable();
        }
    }
}

impl Ring {
    /// Since Linux 6.0 the kernel says at once how many were lost.
    fn lost(&mut self) -> u64 {
        let counted = self.sampler.read_full().ok().and_then(|counter| counter.lost());
        counted.unwrap_or(0).max(self.told_lost)
    }

    #[expect(unsafe_code, reason = "the sampler lends its descriptor as a number alone")]
    fn descriptor(&self) -> BorrowedFd<'_> {
        // SAFETY: the sampler keeps it open for as long as it lives, and the result borrows from the sampler.
        unsafe { BorrowedFd::borrow_raw(self.sampler.as_raw_fd()) }
    }
}

fn format(settings: &WatchSettings) -> Result<Format, String> {
    let places: Vec<PathBuf> = match &settings.tracefs {
        Some(place) => vec![place.clone()],
        None => TRACEFS.iter().map(PathBuf::from).collect(),
    };
    let mut first = None;
    for place in &places {
        let path = place.join(FORMAT);
        match fs::read_to_string(&path) {
            Ok(text) => return Format::parse(&text).map_err(|error| format!("{}: {error}", path.display())),
            Err(error) => first = first.or(Some((place, error))),
        }
    }
    let Some((place, error)) = first else { return Err("no tracefs".to_owned()) };
    let place: &Path = place;
    Err(match error.kind() {
        io::ErrorKind::NotFound => {
            let place = place.display();
            format!("no tracefs at {place}; mount it (mount -t tracefs tracefs {place})")
        }
        _ => format!("tracefs at {} cannot be read: {error}; let agft read it", place.display()),
    })
}

fn open(format: &Format, cpu: usize, bytes: usize, ports: &[u16]) -> io::Result<Ring> {
    let mut builder = Builder::new(Tracepoint::with_id(format.id));
    builder
        .any_pid()
        .one_cpu(cpu)
        .include_kernel()
        .sample(SampleFlag::RAW)
        .sample(SampleFlag::TIME)
        // The clocks of CPUs differ, and events are put in order by it.
        .clockid(Clock::MONOTONIC)
        .sample_period(1)
        .wakeup_events(1);
    // Old kernels do not know this.
    let with_losses = builder.read_format(ReadFormat::LOST).build();
    let counter = with_losses.or_else(|_| builder.read_format(ReadFormat::empty()).build())?;
    only(&counter, &filter(ports))?;
    let mut sampler = counter.sampled(bytes)?;
    sampler.enable()?;
    Ok(Ring { sampler, told_lost: 0 })
}

/// Lets through only what passes this filter.
#[expect(unsafe_code, reason = "the crate has no call for it")]
fn only(counter: &impl AsRawFd, filter: &str) -> io::Result<()> {
    /// `PERF_EVENT_IOC_SET_FILTER`: `_IOW('$', 6, char *)`.
    const SET_FILTER: u32 = 0x4008_2406;
    let filter = std::ffi::CString::new(filter)?;
    // SAFETY: the descriptor is open, and the kernel copies the text before the call returns.
    let result = unsafe { libc::ioctl(counter.as_raw_fd(), SET_FILTER as _, filter.as_ptr()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
