//! The mock under a client that is not ours: NVIDIA's own nvidia-ml-py, installed from PyPI.

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nvidia_ml::{GpuConfig, MockConfig, NO_PERMISSION_VARIABLE};
use support::MockNvml;

fn run(command: &mut Command) -> Result<Output, String> {
    let output = command.output().map_err(|error| format!("{}: {error}", command.get_program().display()))?;
    if output.status.success() {
        return Ok(output);
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)))
}

/// A Python that has the client, made once per build directory; or why there is none.
fn python_with_client() -> Result<PathBuf, String> {
    let venv = Path::new(env!("CARGO_TARGET_TMPDIR")).join("nvidia-ml-py");
    let python = venv.join("bin/python");
    let imports = |python: &Path| run(Command::new(python).args(["-c", "import pynvml"])).is_ok();
    if !imports(&python) {
        run(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
        run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "nvidia-ml-py>=13,<14"]))?;
    }
    Ok(python)
}

#[test]
fn nvidias_python_client_reads_locks_and_resets_the_mocked_gpus() {
    let python = match python_with_client() {
        Ok(python) => python,
        Err(reason) => {
            eprintln!("skipped: no Python with nvidia-ml-py: {reason}");
            return;
        }
    };
    let gpus = [GpuConfig::a6000(), GpuConfig::a100()].map(|gpu| GpuConfig { settle_ms: 0, ..gpu });
    let mock = MockNvml::new(&MockConfig::new(gpus.to_vec()));
    mock.set_processes(1, &[(4711, 1 << 30)]).expect("GPU 1");

    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/nvidia_ml_py.py");
    run(Command::new(&python).arg(script).envs(mock.env())).unwrap_or_else(|error| panic!("{error}"));
    let history = mock.history();
    let writes: Vec<_> = history.iter().map(|write| (write.call, write.gpu, write.code)).collect();
    let (set, reset) = ("nvmlDeviceSetGpuLockedClocks", "nvmlDeviceResetGpuLockedClocks");
    let (set_memory, reset_memory) = ("nvmlDeviceSetMemoryLockedClocks", "nvmlDeviceResetMemoryLockedClocks");
    assert_eq!(
        writes,
        [
            (set, 0, 0),
            (set_memory, 0, 0),
            (reset_memory, 0, 0),
            (reset, 0, 0),
            (set, 0, 0),
            (set, 0, 0),
            (set, 0, 2),
            (set, 0, 2),
            (set_memory, 1, 3),
        ]
    );
    assert!(history.iter().all(|write| write.pid != std::process::id()));

    let refused = "from pynvml import *; nvmlInit(); nvmlDeviceSetGpuLockedClocks(nvmlDeviceGetHandleByIndex(0), 210, 210)";
    let error =
        run(Command::new(&python).args(["-c", refused]).envs(mock.env()).env(NO_PERMISSION_VARIABLE, "1"))
            .expect_err("a user without privilege");
    assert!(error.contains("NVMLError_NoPermission: Insufficient Permissions"), "{error}");
    assert_eq!(mock.history().last().map(|write| write.code), Some(4));
    assert_eq!(mock.locks(0).expect("GPU 0").core, None);
}
