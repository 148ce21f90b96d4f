//! Bad input from every side: configuration, driver, rights, disks. Each gets a message that names the thing and the
//! remedy, its own exit code, and no clock is left locked.

mod support;

use std::fs;
use std::path::Path;

use nvidia_ml::{GpuConfig, MockConfig, NO_PERMISSION_VARIABLE};
use support::daemon::{Bench, Finished, finish};

/// Runs the daemon with a configuration file of this text; it has to end at once.
fn run_with(text: &str) -> Finished {
    let bench = Bench::new();
    fs::write(bench.path("bad.yaml"), text).expect("a file");
    let finished = run_with_file(&bench, &bench.path("bad.yaml"));
    assert_eq!(bench.mock.history(), [], "{finished:?}");
    finished
}

fn run_with_file(bench: &Bench, file: &Path) -> Finished {
    let mut command = bench.command(&[]);
    command.arg("--config").arg(file);
    finish(command)
}

fn assert_refused(finished: &Finished, texts: &[&str]) {
    assert_eq!(finished.code, Some(64), "{finished:?}");
    for text in texts {
        assert!(finished.err.contains(text), "no {text:?} in {}", finished.err);
    }
}
