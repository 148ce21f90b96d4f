//! The faults, and how often each comes.

use std::fs;
use std::path::Path;
use std::time::Duration;

use agft::gpu::nvml::NvmlHost;
use agft::gpu::{GpuClocks, GpuSelector};
use agft::units::Mhz;
use nvidia_ml::Injection;
use rustix::process::{Signal, kill_process};

use crate::support::disk::{Disk, Trouble};
use crate::support::engine::Behaviour;
use crate::world::World;

/// Calls that the daemon and its guardian make while they run.
pub(crate) const CALLS: [&str; 12] = [
    "nvmlDeviceSetGpuLockedClocks",
    "nvmlDeviceSetGpuLockedClocks",
    "nvmlDeviceResetGpuLockedClocks",
    "nvmlDeviceResetMemoryLockedClocks",
    "nvmlDeviceGetTotalEnergyConsumption",
    "nvmlDeviceGetFieldValues",
    "nvmlDeviceGetPowerUsage",
    "nvmlDeviceGetUtilizationRates",
    "nvmlDeviceGetClockInfo",
    "nvmlDeviceGetTemperature",
    "nvmlDeviceGetCurrentClocksEventReasons",
    "nvmlInit_v2",
];

/// Every code of NVML that is an error, and one that it does not have.
const CODES: [u32; 29] = [
    1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 29,
    999,
];

/// Answers that are no good page.
const BAD: [Behaviour; 15] = [
    Behaviour::Refuse,
    Behaviour::Hang,
    Behaviour::Status500,
    Behaviour::Empty,
    Behaviour::Html,
    Behaviour::Huge,
    Behaviour::Poison("NaN"),
    Behaviour::Poison("+Inf"),
    Behaviour::Poison("-1"),
    Behaviour::Truncated,
    Behaviour::NotUtf8,
    Behaviour::Reset,
    Behaviour::OtherNames,
    Behaviour::Duplicates,
    Behaviour::Slow(Duration::from_millis(800)),
];

/// One fault, and the time after it.
pub(crate) fn inflict(world: &mut World) -> Result<(), String> {
    match world.below(100) {
        0..20 => endpoint(world),
        20..28 => load(world),
        28..44 => driver(world),
        44..50 => gpu(world),
        50..56 => stranger(world),
        56..66 => signals(world)?,
        66..74 => reload(world),
        74..84 => disk(world),
        84..88 => kill_guardian(world),
        88..94 => {
            world.tell("kill the controller", "");
            world.kill()?;
        }
        94..96 => kill_both(world)?,
        96..98 => second(world)?,
        _ => damage(world)?,
    }
    let pause = world.millis(10, 500).max(std::mem::take(&mut world.linger));
    rest(world, pause)
}

/// A spell begins under load or, as often as not, without: parked clocks, and outages that look like rest.
pub(crate) fn calm(world: &mut World) {
    if world.below(2) == 0 {
        world.note("a spell without load");
        world.engine().set_load(0.0);
    }
}

/// Waits, looking all the while.
fn rest(world: &mut World, pause: Duration) -> Result<(), String> {
    let until = world.elapsed() + pause;
    loop {
        world.look()?;
        let left = until.saturating_sub(world.elapsed());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(Duration::from_millis(40)));
    }
}

fn endpoint(world: &mut World) {
    match world.below(10) {
        0 => {
            world.tell("engine restart", "");
            world.engine().restart();
        }
        1 => {
            world.tell("counters going back", "");
            world.engine().go_back();
        }
        2..5 => {
            world.tell("endpoint well again", "");
            world.engine().behave(Behaviour::Serve);
            world.ledger.serving(true, Duration::ZERO);
        }
        5 => {
            world.tell("slow page", "");
            world.engine().behave(Behaviour::Slow(Duration::from_millis(120)));
            world.ledger.serving(true, Duration::ZERO);
        }
        _ => {
            let behaviour = world.pick(&BAD);
            let kind = format!("{behaviour:?}");
            world.tell(&format!("endpoint: {}", kind.split('(').next().unwrap_or_default()), &kind);
            world.engine().behave(behaviour);
            world.ledger.serving(false, Duration::ZERO);
            // Long enough to be an outage, as often as not.
            if world.below(2) == 0 {
                world.linger = world.millis(1000, 3500);
            }
        }
    }
}

fn load(world: &mut World) {
    let load = world.pick(&[0.0, 0.0, 0.0, 0.1, 0.6, 1.0]);
    match world.below(4) {
        0 => {
            world.tell("page and GPU disagree", &load.to_string());
            world.engine().show_load(load);
        }
        _ => {
            world.tell("load", &load.to_string());
            world.engine().set_load(load);
        }
    }
}

fn driver(world: &mut World) {
    let call = world.pick(&CALLS);
    let gpu = world.pick(&[None, Some(0), Some(1)]);
    let times = world.pick(&[1, 1, 2, 3, 5, 20]);
    let injection = if world.below(4) == 0 {
        // One in ten of these is longer than the watch allows.
        let long = world.below(10) == 0;
        let delay = if long { Duration::from_secs(30) } else { world.millis(5, 400) };
        world.tell(
            if long { "driver call hangs" } else { "driver call is slow" },
            &format!("{call} {delay:?}"),
        );
        world.ledger.late(delay);
        if call.contains("Reset") {
            world.resets_hang_until = world.elapsed() + delay + Duration::from_secs(10);
        }
        Injection::delay(call, delay).times(1)
    } else {
        let code = world.pick(&CODES);
        world.tell("driver error", &format!("{call} {code} x {times} on {gpu:?}"));
        Injection::error(call, code).times(times)
    };
    let after = world.below(8);
    let injection = Injection { gpu, ..injection.after(after) };
    // All slots taken: there is trouble enough.
    let _ = world.bench.mock.inject(&injection);
}

fn gpu(world: &mut World) {
    let gpu = usize::try_from(world.below(3)).unwrap_or(0);
    let done = match world.below(6) {
        0 => {
            world.tell("GPU lost", &gpu.to_string());
            world.bench.mock.set_lost(gpu, true)
        }
        1 => {
            world.tell("driver reloaded", &gpu.to_string());
            world.bench.mock.reload_driver(gpu)
        }
        2 => {
            world.tell("no throttling", &gpu.to_string());
            world.bench.mock.set_event_reasons(gpu, 0)
        }
        _ => {
            let bits = world.pick(&[0x4, 0x8, 0x10, 0x20, 0x40, 0x80, 0xff]);
            world.tell("throttling", &format!("{bits:#x} on {gpu}"));
            world.bench.mock.set_event_reasons(gpu, bits)
        }
    };
    done.expect("a GPU of this machine");
}

/// Tries of somebody else to take back a lock: more than any injected error lasts.
const RESET_TRIES: u32 = 50;

/// Somebody with nvidia-smi.
fn stranger(world: &mut World) {
    let Ok(host) = NvmlHost::open_with(&world.bench.mock.library()) else { return };
    let Ok(mut clocks) = host.clocks(&GpuSelector::Index(0)) else { return };
    if world.below(2) == 0 {
        world.tell("somebody resets the clocks", "");
        let _ = clocks.reset_core();
    } else {
        let mhz = world.pick(&[510, 900, 1200]);
        world.tell("somebody locks the clocks", &mhz.to_string());
        // It is locked over, or undone, by whoever resets next; at the end nobody has locked it but agft.
        let _ = clocks.lock_core(Mhz(210), Mhz(mhz));
        std::thread::sleep(Duration::from_millis(150));
        // An error that was meant for agft may meet the stranger instead: whoever locked tries again.
        for _ in 0..RESET_TRIES {
            if clocks.reset_core().is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn signals(world: &mut World) -> Result<(), String> {
    match world.below(5) {
        0 => {
            world.tell("SIGTERM and start", "");
            world.terminate(Signal::TERM)?;
        }
        1 => {
            world.tell("SIGINT and start", "");
            world.terminate(Signal::INT)?;
        }
        2 => {
            world.tell("SIGUSR2 and others that are ignored", "");
            world.signal(Signal::WINCH);
            world.signal(Signal::CHILD);
        }
        3 => {
            let pause = world.millis(20, 600);
            world.tell("short SIGSTOP", &format!("{pause:?}"));
            stop(world, pause);
        }
        _ => {
            let pause = world.millis(3000, 5000);
            world.tell("long SIGSTOP", &format!("{pause:?}"));
            stop(world, pause);
        }
    }
    Ok(())
}

fn stop(world: &mut World, pause: Duration) {
    if world.freeze() {
        std::thread::sleep(pause);
        world.signal(Signal::CONT);
        // What it had decided before, it does now.
        world.ledger.late(Duration::ZERO);
    }
}

fn reload(world: &mut World) {
    let path = world.bench.path("config.yaml");
    if !world.ledger.is_up() {
        // A start reads the file itself, and ends where it is broken: rightly.
        return;
    }
    match world.below(4) {
        0 => {
            world.tell("reload of an unchanged file", "");
            world.bench.config();
        }
        1 => {
            world.tell("reload of a broken file", "");
            let _ = fs::write(&path, "control: [");
        }
        2 => {
            world.tell("reload of a wrong value", "");
            let _ = fs::write(&path, "gpu:\n  min_frequency: fast\n");
        }
        _ => {
            let value = world.pick(&["500", "700", "900"]);
            world.tell("reload of a good file", value);
            world.bench.change("gpu.min_frequency", value);
            world.bench.config();
        }
    }
    world.signal(Signal::HUP);
    // A start needs a sound file: let the signal be heard first.
    std::thread::sleep(Duration::from_millis(30));
    world.bench.config();
}

fn disk(world: &mut World) {
    let which = usize::try_from(world.below(4)).unwrap_or(0);
    let name = world.disks[which].path().file_name().unwrap_or_default().to_string_lossy().into_owned();
    if world.below(3) == 0 {
        world.tell("disk well again", &name);
        world.disks[which].mend();
        return;
    }
    let trouble = world.pick(&[Trouble::Full, Trouble::ReadOnly]);
    let done = world.disks[which].fail(trouble);
    world.disks_trouble |= done;
    world.tell(&format!("disk {trouble:?}{}", if done { "" } else { " (not possible)" }), &name);
}

fn kill_guardian(world: &mut World) {
    let signal = world.pick(&[Signal::KILL, Signal::TERM, Signal::STOP]);
    if let Some(guardian) = world.guardian() {
        world.tell(&format!("guardian: {signal:?}"), "");
        // Gone already: then somebody else was faster.
        if Path::new(&format!("/proc/{}", guardian.as_raw_nonzero())).exists() {
            let _ = kill_process(guardian, signal);
            if signal == Signal::STOP {
                world.guardian_stopped(guardian);
            }
        }
    }
}

fn kill_both(world: &mut World) -> Result<(), String> {
    world.tell("kill both", "");
    world.kill_both()?;
    world.bench.mock.clear_injections();
    world.disks.iter().for_each(Disk::mend);
    for gpu in 0..world.bench.mock.gpu_count() {
        world.bench.mock.set_lost(gpu, false).expect("a GPU of this machine");
    }
    if world.below(2) == 0 {
        let done = world.bench.run(&["release", "--journal"]);
        if done.code != Some(0) || !world.bench.is_free() {
            return Err(format!("after the end of both: {done:?}"));
        }
        world.note("released by the journal");
    }
    Ok(())
}

fn second(world: &mut World) -> Result<(), String> {
    if world.daemon().is_none() {
        return Ok(());
    }
    world.tell("other agft commands beside it", "");
    for arguments in [&["release", "--journal"][..], &["check"], &["gpus"]] {
        let done = world.bench.run(arguments);
        if done.err.contains("panicked") {
            return Err(format!("{arguments:?}: {done:?}"));
        }
    }
    Ok(())
}

/// A failing disk, under a program that does not run.
fn damage(world: &mut World) -> Result<(), String> {
    world.kill()?;
    let name = world.pick(&["model.agft", "model.previous.agft"]);
    if world.damage(name) {
        world.tell("damaged model", name);
    }
    Ok(())
}
