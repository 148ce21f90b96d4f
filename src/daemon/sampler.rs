//! The thread that reads the GPUs: the energy counter as it ticks (`pace`), all sensors ten times a second; less while
//! they are parked, which reading must not disturb.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::Notify;

use super::clock::Clock;
use super::pace::Pace;
use super::trust::Trusted;
use super::watch::Pulse;
use crate::control::GpuTick;
use crate::gpu::plausible::EnergySource;
use crate::gpu::{GpuError, GpuReading, GpuSensors};
use crate::reward::energy::EnergyPoint;
use crate::units::{Millijoules, Seconds, Time};

/// How often to look.
#[derive(Debug, Clone, Copy)]
pub struct SamplerSettings {
    pub(crate) energy_every: Duration,
    /// The windows that power is measured over.
    pub(crate) window: Seconds,
    /// At everything else.
    pub(crate) sensors_every: Duration,
    /// At all of it while the GPUs are parked, and their sensors are what would show work.
    pub(crate) watch_every: Duration,
}

/// What the GPUs are looked at for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub(crate) enum Watch {
    /// For the windows alone.
    #[default]
    Off,
    /// Parked, and another source would tell of work sooner.
    Asleep,
    /// Parked, and work has to be found.
    Parked,
    /// Woken: until their clocks are back.
    Waking,
}

impl Watch {
    fn of(number: u8) -> Self {
        let all = [Self::Asleep, Self::Parked, Self::Waking];
        all.into_iter().find(|watch| *watch as u8 == number).unwrap_or_default()
    }
}

/// Between looks at GPUs that others watch over.
const ASLEEP: Duration = Duration::from_secs(1);
/// The shortest time between two readings.
const OVERDUE: Duration = Duration::from_millis(1);
/// Between looks at clocks that are on their way back.
const WAKING: Duration = Duration::from_millis(10);

impl SamplerSettings {
    /// Between two looks at all sensors.
    fn look_every(&self, watch: Watch) -> Seconds {
        let every = match watch {
            Watch::Off => self.sensors_every,
            Watch::Asleep => ASLEEP.max(self.watch_every),
            Watch::Parked => self.watch_every,
            Watch::Waking => WAKING.min(self.sensors_every),
        };
        Seconds(every.as_secs_f64())
    }

    /// Between two readings of the energy counter of parked GPUs; `None` where its ticks are followed.
    fn pause(&self, watch: Watch) -> Option<Duration> {
        match watch {
            Watch::Off | Watch::Waking => None,
            Watch::Asleep => Some(ASLEEP),
            // No longer, or it is taken for stuck.
            Watch::Parked => Some(self.watch_every.min(ASLEEP).max(self.energy_every)),
        }
    }
}

/// At most this many counter ticks wait for the next step: a stalled loop must not fill the memory.
const MAX_POINTS: usize = 4096;

#[derive(Default)]
struct Shared {
    ticks: Mutex<Vec<GpuTick>>,
    stop: AtomicBool,
    /// The [`Watch`]; anything but off has a notice sent after each look at the sensors.
    watch: AtomicU8,
    looked: Notify,
    lost: Mutex<Option<GpuError>>,
    ended: Notify,
    /// Marked after each look at the GPUs.
    pulse: Pulse,
}

/// Handle of the sampling thread; it ends when this is dropped.
pub struct Sampler {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    sources: Vec<EnergySource>,
}

impl Sampler {
    /// Starts sampling; finds out first where each GPU's energy comes from.
    /// Errors: [`std::io::Error`] if the thread cannot be started.
    pub fn spawn(
        sensors: Vec<Box<dyn GpuSensors>>,
        settings: SamplerSettings,
        clock: Clock,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        *shared.ticks.lock().unwrap_or_else(PoisonError::into_inner) =
            vec![GpuTick::default(); sensors.len()];
        let gpus: Vec<Gpu> = sensors
            .into_iter()
            .map(|sensors| Gpu {
                sensors: Trusted::new(sensors, clock),
                last: None,
                pace: Pace::new(settings.energy_every, settings.window, clock.now()),
            })
            .collect();
        let sources = gpus.iter().map(|gpu| gpu.sensors.source()).collect();
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("agft-sensors".into())
            .spawn(move || sample(&theirs, gpus, settings, &clock))?;
        Ok(Self { shared, thread: Some(thread), sources })
    }

    /// Where each GPU's energy comes from.
    pub(crate) fn sources(&self) -> &[EnergySource] {
        &self.sources
    }

    /// What was seen since the last call: latest readings, counter ticks.
    pub fn collect(&self) -> Vec<GpuTick> {
        let mut ticks = self.shared.ticks.lock().unwrap_or_else(PoisonError::into_inner);
        ticks.iter_mut().map(|tick| GpuTick { energy: std::mem::take(&mut tick.energy), ..*tick }).collect()
    }

    /// Marked after each look at the GPUs.
    pub(crate) fn pulse(&self) -> Pulse {
        self.shared.pulse.clone()
    }

    /// What to look for from now on. All but [`Watch::Off`] have [`Sampler::looked`] fire after each look at the sensors.
    pub(crate) fn set_watch(&self, watch: Watch) {
        let before = self.shared.watch.swap(watch as u8, Ordering::Relaxed);
        // It may be asleep for a second.
        if before != watch as u8
            && let Some(thread) = &self.thread
        {
            thread.thread().unpark();
        }
    }

    /// Waits for the next look at the sensors while watching.
    pub async fn looked(&self) {
        self.shared.looked.notified().await;
    }

    /// Waits until a GPU is lost, and says how.
    pub async fn lost(&self) -> GpuError {
        loop {
            if let Some(error) = self.shared.lost.lock().unwrap_or_else(PoisonError::into_inner).take() {
                return error;
            }
            self.shared.ended.notified().await;
        }
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // Not joined: a driver call that hangs must not keep the program from ending.
        drop(self.thread.take());
    }
}

/// One GPU with what its energy readings need to remember.
struct Gpu {
    sensors: Trusted,
    last: Option<Millijoules>,
    pace: Pace,
}

impl Gpu {
    /// Reads the energy counter if that is due; a point if it ticked.
    fn energy(&mut self, now: Time, paused: bool) -> Result<Option<EnergyPoint>, GpuError> {
        if !paused && now < self.pace.due() {
            return Ok(None);
        }
        let value = self.sensors.energy().inspect_err(|_| self.pace.missed(now))?;
        // The first reading falls anywhere between two ticks: it is no tick.
        let changed = self.last.replace(value).is_some_and(|last| last != value);
        let ticked = if paused { self.pace.interrupt(now, changed) } else { self.pace.read(now, changed) };
        let total = value.since(Millijoules(0)).filter(|_| ticked);
        Ok(total.map(|total| EnergyPoint { at: now, total }))
    }
}

fn sample(shared: &Shared, mut gpus: Vec<Gpu>, settings: SamplerSettings, clock: &Clock) {
    let mut last_look: Option<Time> = None;
    while !shared.stop.load(Ordering::Relaxed) {
        let now = clock.now();
        let watch = Watch::of(shared.watch.load(Ordering::Relaxed));
        let (every, pause) = (settings.look_every(watch), settings.pause(watch));
        let look_due = last_look.map_or(now, |last| last + every);
        let look = now >= look_due;
        for (index, gpu) in gpus.iter_mut().enumerate() {
            let point = gpu.energy(clock.now(), pause.is_some());
            let reading = if look { Some(gpu.sensors.reading()) } else { None };
            let lost = [point.as_ref().err(), reading.as_ref().and_then(|r| r.as_ref().err())]
                .into_iter()
                .flatten()
                .find(|error| error.ends_sampling() || error.is_waited_out())
                .cloned();
            let mut ticks = shared.ticks.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(tick) = ticks.get_mut(index) else { continue };
            if let Ok(Some(point)) = point
                && tick.energy.len() < MAX_POINTS
            {
                tick.energy.push(point);
            }
            if let Some(reading) = reading {
                tick.reading = reading.ok().filter(|r: &GpuReading| *r != GpuReading::default());
                tick.read_at = tick.reading.map(|_| now);
            }
            drop(ticks);
            if let Some(error) = lost {
                *shared.lost.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                shared.ended.notify_one();
            }
        }
        if look {
            // In step, unless it fell behind.
            last_look = Some(if now.since(look_due) < every { look_due } else { now });
            if watch != Watch::Off {
                shared.looked.notify_one();
            }
        }
        shared.pulse.mark();
        let due = gpus.iter().map(|gpu| gpu.pace.due().0).chain(last_look.map(|last| (last + every).0));
        let next = due.fold(f64::INFINITY, f64::min);
        std::thread::park_timeout(pause.unwrap_or_else(|| until(clock.now(), next)));
    }
    // Ended is not stuck: the group may be watched for longer, until its clocks are back.
    shared.pulse.rest();
}

/// The time until something is due; a little where it is overdue, so that a slow driver leaves time to others.
fn until(now: Time, due_s: f64) -> Duration {
    Duration::try_from_secs_f64(due_s - now.0).unwrap_or_default().clamp(OVERDUE, ASLEEP)
}
