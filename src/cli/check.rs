//! `agft check` and `agft check-config`: is everything in place? Changes nothing.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use clap::Args;

use super::{Cli, Exit, report_config_error};
use crate::config::{Config, Server, Servers, unjudged};
use crate::connections::{self, Source};
use crate::daemon::clients;
use crate::engine::{self, Profile};
use crate::gpu::host::{self, AnyHost};
use crate::gpu::plausible::EnergySource;
use crate::gpu::probe::judge;
use crate::gpu::{GpuError, GpuSensors, NO_CLOCKS_LISTED};
use crate::guardian::undo::runtime_dir;
use crate::metrics::page::{LARGEST_PAGE, Page};
use crate::metrics::report::{EngineReport, describe};
use crate::metrics::scrape::{Scraper, exposed, without_query};
use crate::open::auto::{self, Seeker};
use crate::reward::judge::not_judged;
use crate::store::{Distrust, trusted_dir};

/// Options of `check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Look for inference servers on this machine instead, and print the configuration that would follow.
    /// Asks the ports at which processes on the GPUs listen for /health and /metrics
    #[arg(long)]
    pub discover: bool,

    /// Check this profile of an engine instead, and with --page what it reads
    #[arg(long, value_name = "FILE", conflicts_with = "discover")]
    pub engine_file: Option<PathBuf>,

    /// Read this metrics page, a file, by the profile (- for standard input)
    #[arg(long, value_name = "FILE", requires = "engine_file")]
    pub page: Option<PathBuf>,
}

/// Checks a configuration file alone.
pub(crate) fn run_config(file: &Path) -> Exit {
    match Config::load(file) {
        Ok(loaded) => {
            for warning in &loaded.warnings {
                say!("{}: warning: {warning}", file.display());
            }
            say!("{}: ok", file.display());
            Exit::Ok
        }
        Err(error) => report_config_error(&error),
    }
}

/// Checks a profile of an engine, and what it reads of a page.
pub(crate) fn run_engine(file: &Path, page: Option<&Path>) -> Exit {
    let profile = match engine::load_file(file) {
        Ok(profile) => profile,
        Err(error) => {
            complain!("agft: {}", error.to_string().replace('\n', "\nagft: "));
            return Exit::Config;
        }
    };
    say!("{}: ok, {}", file.display(), profile.name());
    let Some(page) = page else { return Exit::Ok };
    let body = match read_page(page) {
        Ok(body) => body,
        Err(error) => {
            complain!("agft: {}: cannot be read: {error}", page.display());
            return Exit::Failure;
        }
    };
    // The profile lives as long as the process, as those that are served by do.
    let profile: &'static Profile = Box::leak(Box::new(profile));
    match Page::parse_among(&body, None, std::iter::once(profile)) {
        Ok(read) => {
            let report = describe(&read);
            report.to_string().lines().for_each(|line| say!("{line}"));
            if report.can_learn() { Exit::Ok } else { Exit::Failure }
        }
        Err(error) => {
            complain!("agft: {}: {error}", page.display());
            Exit::Failure
        }
    }
}

/// The bytes of a page, as far as a page may be long.
fn read_page(page: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let most = LARGEST_PAGE as u64 + 1;
    match page.to_str() {
        Some("-") => io::stdin().take(most).read_to_end(&mut bytes)?,
        _ => File::open(page)?.take(most).read_to_end(&mut bytes)?,
    };
    Ok(bytes)
}

/// Prints one line per question and remembers the worst answer.
struct Lines {
    worst: Exit,
}

impl Lines {
    fn ok(&mut self, what: &str, answer: &str) {
        say!("ok    {what}: {answer}");
    }

    /// An answer of several lines, the first beside the question.
    fn engine(&mut self, report: &EngineReport) {
        let answer = report.to_string();
        let (first, rest) = answer.split_once('\n').unwrap_or((&answer, ""));
        if report.can_learn() {
            self.ok("engine", first);
        } else {
            self.bad("engine", first, Exit::Failure);
        }
        rest.lines().for_each(|line| say!("{line}"));
    }

    fn warn(&mut self, what: &str, answer: &str) {
        say!("note  {what}: {answer}");
    }

    fn bad(&mut self, what: &str, answer: &str, exit: Exit) {
        say!("FAIL  {what}: {answer}");
        if self.worst == Exit::Ok {
            self.worst = exit;
        }
    }
}

/// Checks the whole installation.
pub(crate) fn run(cli: &Cli) -> Exit {
    let mut lines = Lines { worst: Exit::Ok };
    let config = match Config::load_trusted(&cli.config) {
        Ok(loaded) => {
            lines.ok("configuration", &cli.config.display().to_string());
            for warning in &loaded.warnings {
                lines.warn("configuration", &warning.to_string());
            }
            for engine in &loaded.engines {
                lines.ok("engine file", engine.name());
            }
            engine::take(loaded.engines);
            Some(loaded.config)
        }
        Err(error) => {
            lines.bad("configuration", &error.to_string(), Exit::Config);
            None
        }
    };
    // What can be checked without the file is checked all the same.
    let config_or_default = config.clone().unwrap_or_default();
    let servers = match host::open() {
        Ok(host) => {
            host.libraries().iter().for_each(|(library, text)| lines.ok(library, text));
            let servers = servers(host, &config_or_default, &mut lines);
            servers.iter().for_each(|server| check_gpus(host, &server.config, &mut lines));
            servers
        }
        Err(error) => {
            lines.bad("driver", &error.to_string(), Exit::Failure);
            config_or_default.servers()
        }
    };
    check_rights(&mut lines);
    check_connections(&config_or_default, &servers, &mut lines);
    check_directories(&config_or_default, &mut lines);
    if config.is_some() {
        servers.iter().for_each(|server| check_endpoint(server, &mut lines));
    }
    lines.worst
}

/// The servers of the configuration; says what is found of those that are looked for.
fn servers(host: AnyHost, config: &Config, lines: &mut Lines) -> Vec<Server> {
    if !config.is_auto() {
        return config.servers();
    }
    let seen = match Seeker::new(host).and_then(|mut seeker| seeker.look(config)) {
        Ok(seen) => seen,
        Err(error) => {
            lines.bad("servers", &format!("they cannot be looked for: {error}"), Exit::Failure);
            return auto::servers(config, &[]);
        }
    };
    for found in &seen.found {
        let place = format!("{} on {}", without_query(&found.metrics_url), found.gpus.join(", "));
        lines.ok(&format!("server {}", found.name), &place);
    }
    for (name, why) in &seen.left_out {
        match config.servers {
            // One that is named has to be there.
            Servers::One | Servers::List(_) => lines.bad(&format!("server {name}"), why, Exit::Failure),
            Servers::Auto => lines.warn(name, &format!("left alone: {why}")),
        }
    }
    if config.servers == Servers::Auto && seen.found.is_empty() {
        lines.warn("servers", "none found now; agft waits for one");
    }
    auto::servers(config, &seen.found)
}

fn check_gpus(host: AnyHost, config: &Config, lines: &mut Lines) {
    let mut names = Vec::new();
    for selector in &config.gpu.device_id {
        let what = format!("GPU {selector}");
        let sensors = match host.sensors(selector) {
            Ok(sensors) => sensors,
            Err(error) => {
                lines.bad(&what, &error.to_string(), Exit::Failure);
                continue;
            }
        };
        names.push(sensors.info().name.clone());
        match sensors.supported_clocks() {
            Ok(clocks) => lines.ok(
                &what,
                &format!(
                    "{}, core {} to {} in {} steps, {} memory clock(s)",
                    sensors.info().name,
                    clocks.core_min(),
                    clocks.core_max(),
                    clocks.core().len(),
                    clocks.levels().len()
                ),
            ),
            Err(error @ GpuError::NotSupported { .. }) => {
                let text = format!("{error}: {NO_CLOCKS_LISTED}");
                match config.control.data_collection_mode {
                    true => lines.warn(&what, &text),
                    false => lines.bad(&what, &text, Exit::Failure),
                }
            }
            Err(error) => lines.bad(&what, &error.to_string(), Exit::Failure),
        }
        let (setup, info) = (sensors.setup(), sensors.info());
        if setup.mig == Some(true) {
            let error = GpuError::Mig { gpu: info.to_string(), index: info.index };
            lines.bad(&what, &error.to_string(), Exit::Failure);
        }
        if setup.persistence == Some(false) {
            let remedy = format!("run nvidia-persistenced, or `nvidia-smi -i {} -pm 1`", info.index);
            lines.warn(&what, &format!("persistence mode is off; {remedy}"));
        }
        check_energy(sensors.as_ref(), &what, config.gpu.device_id.len() > 1, lines);
    }
    names.dedup();
    if names.len() > 1 {
        lines.bad("GPU group", "the GPUs of one engine must be of one product", Exit::Failure);
    }
}

/// Where energy comes from, and which sensors are not believed.
fn check_energy(sensors: &dyn GpuSensors, what: &str, in_group: bool, lines: &mut Lines) {
    let found = match judge(sensors) {
        Ok(found) => found,
        Err(error) => return lines.bad(what, &format!("energy: {error}"), Exit::Failure),
    };
    found.doubts.iter().for_each(|doubt| lines.warn(what, doubt));
    match (found.source, found.counter) {
        (EnergySource::Counter, _) => lines.ok(what, "energy from the driver's counter"),
        (EnergySource::PowerIntegration, false) => {
            lines.warn(what, "no energy counter: power samples are integrated instead");
        }
        (EnergySource::PowerIntegration, true) => lines.ok(what, "energy integrated from power samples"),
        (EnergySource::None, _) => {
            let group = if in_group { ", and that of the whole group with it" } else { "" };
            let text = format!(
                "energy is unknown{group}: no counter and no power to believe; nothing can be learned"
            );
            lines.bad(what, &text, Exit::Failure);
        }
    }
}

/// Locks need `CAP_SYS_ADMIN`; asking the kernel writes nothing to a GPU.
fn check_rights(lines: &mut Lines) {
    match has_sys_admin() {
        Some(true) => lines.ok("rights", "may lock clocks (CAP_SYS_ADMIN)"),
        Some(false) => lines.bad(
            "rights",
            "not permitted to lock clocks; run agft as root or grant it CAP_SYS_ADMIN \
             (data collection and dry run work without)",
            Exit::NotPermitted,
        ),
        None => lines.warn("rights", "the kernel does not say; locking clocks needs root or CAP_SYS_ADMIN"),
    }
}

/// Where connections to the engine would be watched, for parking by connections, and who listens there.
fn check_connections(config: &Config, servers: &[Server], lines: &mut Lines) {
    match connections::probe() {
        source @ Source::KernelEvents { requests: true } => lines.ok("connections", &source.to_string()),
        source => lines.warn("connections", &source.to_string()),
    }
    let mut ports: Vec<u16> = servers.iter().flat_map(|server| clients::ports(&server.config)).collect();
    ports.extend(&config.park.ports);
    for note in connections::notes_on_servers(&ports) {
        lines.warn("connections", &note);
    }
}

/// Bit of `CAP_SYS_ADMIN` in the kernel's capability masks.
const CAP_SYS_ADMIN: u64 = 1 << 21;

fn has_sys_admin() -> Option<bool> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    Some(u64::from_str_radix(mask.trim(), 16).ok()? & CAP_SYS_ADMIN != 0)
}

fn check_directories(config: &Config, lines: &mut Lines) {
    let as_root = rustix::process::geteuid().is_root();
    let runtime = runtime_dir(config).display().to_string();
    if let Err(untrusted) = trusted_dir(Path::new(&runtime))
        && as_root
    {
        lines.bad("gpu.runtime_dir", &format!("root keeps nothing in {runtime}: {untrusted}"), Exit::Failure);
    }
    for (key, dir) in [
        ("model.save_dir", &config.model.save_dir),
        ("experiment.dir", &config.experiment.dir),
        ("logging.dir", &config.logging.dir),
    ] {
        if let Err(untrusted) = trusted_dir(Path::new(dir))
            && as_root
        {
            // A right too many to the directory itself is taken away; without a log file agft runs all the same.
            let itself = std::path::absolute(dir).is_ok_and(|dir| dir == untrusted.at);
            if key == "logging.dir" || (itself && matches!(untrusted.why, Distrust::Writable { .. })) {
                lines.warn(key, &format!("others can change what root keeps in {dir}: {untrusted}"));
            } else {
                lines.bad(key, &format!("root keeps nothing in {dir}: {untrusted}"), Exit::Failure);
                continue;
            }
        }
        // The nearest directory that exists decides whether the rest can be made.
        let existing = Path::new(dir).ancestors().find(|path| path.as_os_str().is_empty() || path.exists());
        let place = existing.filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."));
        match rustix::fs::access(place, rustix::fs::Access::WRITE_OK) {
            Ok(()) if place.is_dir() => lines.ok(key, dir),
            Ok(()) => {
                lines.bad(key, &format!("{dir}: {} is not a directory", place.display()), Exit::Failure);
            }
            Err(error) => {
                lines.bad(
                    key,
                    &format!("{dir}: cannot write in {}: {error}", place.display()),
                    Exit::Failure,
                );
            }
        }
    }
}

fn check_endpoint(server: &Server, lines: &mut Lines) {
    let config = &server.config;
    let url = &config.vllm.prometheus_url;
    if let Some(warning) = config.vllm.bearer_token_file.as_ref().and_then(|file| exposed(Path::new(file))) {
        lines.warn("vllm.bearer_token_file", &warning);
    }
    match fetch(server) {
        Ok(report) => {
            lines.ok("endpoint", url);
            lines.engine(&report);
            for vain in unjudged(report.engine, &config.control) {
                lines.bad("limits", &vain.of(&server.name), Exit::Config);
            }
            let limits = crate::compose::limits(config);
            for why in limits.map(|limits| not_judged(&[report.engine], &limits)).unwrap_or_default() {
                lines.warn("limits", &format!("not judged: {why}"));
            }
        }
        Err(error) => lines.bad("endpoint", &format!("{error:#}"), Exit::Failure),
    }
}

fn fetch(server: &Server) -> anyhow::Result<EngineReport> {
    let config = &server.config;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let scraper = Scraper::new(&crate::compose::scrape_settings(config, &server.engine))?;
    let body = runtime.block_on(scraper.fetch())?;
    let named = engine::named(&server.engine.to_string());
    let among = engine::all().filter(|engine| named.is_none_or(|named| *engine == named));
    Ok(describe(&Page::parse_among(&body.body, config.vllm.model_name.as_deref(), among)?))
}
