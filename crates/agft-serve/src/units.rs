//! Instances as systemd units, for hosts where PID 1 is to run the servers.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use rustix::process::Signal;

use crate::spec::{Hook, Instance, RestartPolicy};

/// Where a program is looked for that is named without a directory: systemd's own search, without the user's
/// PATH.
const PATH: [&str; 4] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin"];

/// The file name of an instance's unit.
#[must_use]
pub fn file_name(name: &str) -> String {
    format!("agft-instance-{}.service", escaped_name(name))
}

/// As `systemd-escape` does it.
fn escaped_name(name: &str) -> String {
    let mut out = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b':' | b'_' | b'.') {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out
}

/// A word of a setting: in quotes, with what systemd would replace written so that it stays.
fn word(text: &str, dollars: bool) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '%' => out.push_str("%%"),
            '$' if dollars => out.push_str("$$"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => {
                for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                    let _ = write!(out, "\\x{byte:02x}");
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A value that is one line and no list of words: paths, descriptions.
fn plain(text: &str) -> String {
    text.replace('%', "%%")
}

fn command_line(command: &[String]) -> String {
    let mut words = command.iter();
    let program = words.next().map_or("", String::as_str);
    let found = PATH.iter().map(|dir| Path::new(dir).join(program)).find(|path| path.exists());
    let program = match found {
        Some(path) if !program.contains('/') => path.display().to_string(),
        _ => program.to_owned(),
    };
    let mut line = word(&program, false);
    for argument in words {
        line.push(' ');
        line.push_str(&word(argument, true));
    }
    line
}

/// What a unit cannot say, and the text of the unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// Its file name.
    pub file_name: String,
    /// Its text.
    pub text: String,
    /// What is lost, one line each.
    pub lost: Vec<String>,
}

/// The unit of an instance.
#[must_use]
pub fn unit(instance: &Instance) -> Unit {
    let mut lost = Vec::new();
    let name = &instance.name;
    let mut out = String::from("# Written by `agft-serve instances systemd-units`.\n[Unit]\n");
    let mut line = |text: std::fmt::Arguments<'_>| {
        let _ = out.write_fmt(text);
        out.push('\n');
    };
    line(format_args!("Description=Inference server {}", plain(name)));
    line(format_args!("Wants=network-online.target"));
    line(format_args!("After=network-online.target"));
    line(format_args!("StartLimitIntervalSec=0"));
    line(format_args!("\n[Service]\nType=exec"));
    if let Some(user) = &instance.user {
        line(format_args!("User={}", plain(user)));
    }
    if let Some(dir) = &instance.working_directory {
        line(format_args!("WorkingDirectory={}", plain(&dir.display().to_string())));
    }
    for (key, value) in &instance.env {
        line(format_args!("Environment={}", word(&format!("{key}={value}"), false)));
    }
    line(format_args!("ExecStart={}", command_line(&instance.command)));
    let mut hooks = Vec::new();
    flatten(&instance.hooks, &mut hooks);
    for hook in hooks {
        // Beside the server, in its control group: systemd ends them together.
        let command = hook.command.iter().map(|text| shlex::try_quote(text)).collect::<Result<Vec<_>, _>>();
        match command {
            Ok(words) => line(format_args!(
                "ExecStartPost={} -c {}",
                word("/bin/sh", false),
                word(&format!("{} >/dev/null 2>&1 &", words.join(" ")), true)
            )),
            Err(_) => lost.push(format!("{name}: hook {} cannot be written for a shell", hook.name)),
        }
    }
    let policy = match instance.restart.policy {
        RestartPolicy::Always => "always",
        RestartPolicy::OnFailure => "on-failure",
        RestartPolicy::Never => "no",
    };
    line(format_args!("Restart={policy}"));
    line(format_args!("RestartSec={}ms", instance.restart.first.as_millis()));
    line(format_args!("RestartMaxDelaySec={}ms", instance.restart.longest.as_millis()));
    line(format_args!("RestartSteps={}", steps(instance)));
    let signal = Signal::from_named_raw(instance.stop.signal).map_or("SIGTERM".to_owned(), signal_name);
    line(format_args!("KillSignal={signal}"));
    line(format_args!("TimeoutStopSec={}ms", instance.stop.grace.as_millis()));
    if let Some(file) = &instance.log.file {
        let file = plain(&file.display().to_string());
        line(format_args!("StandardOutput=append:{file}\nStandardError=append:{file}"));
        lost.push(format!("{name}: log.max_mib and log.keep: systemd rotates no files (use logrotate)"));
    }
    line(format_args!("\n[Install]\nWantedBy=multi-user.target"));
    if instance.on_demand.is_some() {
        lost.push(format!("{name}: on_demand: its unit runs always, or never (see systemd-socket-proxyd)"));
    }
    if instance.ready.is_some() {
        lost.push(format!("{name}: ready: for systemd it is ready once it runs"));
    }
    Unit { file_name: file_name(name), text: out, lost }
}

fn flatten<'h>(hooks: &'h [Hook], out: &mut Vec<&'h Hook>) {
    for hook in hooks.iter().filter(|hook| hook.enabled) {
        out.push(hook);
        flatten(&hook.hooks, out);
    }
}

/// How many doublings lead from the first pause to the longest.
fn steps(instance: &Instance) -> u32 {
    let ratio = instance.restart.longest.as_millis() / instance.restart.first.as_millis().max(1);
    ratio.checked_ilog2().unwrap_or(0)
}

fn signal_name(signal: Signal) -> String {
    let known = [
        (Signal::INT, "INT"),
        (Signal::QUIT, "QUIT"),
        (Signal::HUP, "HUP"),
        (Signal::USR1, "USR1"),
        (Signal::USR2, "USR2"),
        (Signal::KILL, "KILL"),
    ];
    let name = known.iter().find(|(known, _)| *known == signal).map_or("TERM", |(_, name)| name);
    format!("SIG{name}")
}

/// Writes the unit of each instance into `dir`; gives the files and what is lost.
///
/// # Errors
/// The file and what the system said.
pub fn write(
    dir: &Path,
    instances: &[Instance],
) -> Result<(Vec<PathBuf>, Vec<String>), (PathBuf, io::Error)> {
    let mut files = Vec::new();
    let mut lost = Vec::new();
    for instance in instances {
        let unit = unit(instance);
        let file = dir.join(unit.file_name);
        std::fs::write(&file, unit.text).map_err(|error| (file.clone(), error))?;
        files.push(file);
        lost.extend(unit.lost);
    }
    Ok((files, lost))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::{Surroundings, parse};

    const FILE: &str = r#"
- name: "Chat 8B (1) 100%"
  command: [/bin/sh, -c, "echo \"a  b\" '$HOME' %h \\ é", "x;y", "tab\there"]
  env: {A: "1 \"2\" %n $X", CUDA_VISIBLE_DEVICES: 0}
  working_directory: /tmp
  restart: {first_s: 1, longest_s: 64}
  stop: {signal: INT, grace_s: 5}
  hooks: [{name: h, command: [/bin/echo, "it's", "$PATH"], hooks: [{command: [/bin/true]}]}]
  log: {file: /var/log/chat.log}
- {name: plain, command: sleep 5}
"#;

    fn units() -> Vec<Unit> {
        let entries = parse(Path::new("f"), FILE, &Surroundings::default()).unwrap();
        entries.instances().iter().map(unit).collect()
    }

    #[test]
    fn what_systemd_would_replace_is_escaped() {
        let units = units();
        assert_eq!(units[0].file_name, r"agft-instance-Chat\x208B\x20\x281\x29\x20100\x25.service");
        for line in [
            "Description=Inference server Chat 8B (1) 100%%",
            r#"ExecStart="/bin/sh" "-c" "echo \"a  b\" '$$HOME' %%h \\ é" "x;y" "tab\there""#,
            r#"Environment="A=1 \"2\" %%n $X""#,
            "ExecStartPost=\"/bin/sh\" -c \"/bin/echo \\\"it's\\\" '$$PATH' >/dev/null 2>&1 &\"",
            "ExecStartPost=\"/bin/sh\" -c \"/bin/true >/dev/null 2>&1 &\"",
            "KillSignal=SIGINT",
            "TimeoutStopSec=5000ms",
            "RestartSteps=6",
            "StandardOutput=append:/var/log/chat.log",
        ] {
            assert!(units[0].text.lines().any(|have| have == line), "{line}\n{}", units[0].text);
        }
        assert!(units[1].text.contains("ExecStart=\"/usr/bin/sleep\" \"5\""), "{}", units[1].text);
        assert!(units[0].lost[0].contains("logrotate"));
    }

    #[test]
    fn systemd_takes_them() {
        let tool = std::process::Command::new("systemd-analyze").arg("--version").output();
        if tool.is_err() {
            eprintln!("skipped: systemd-analyze is not here");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let entries = parse(Path::new("f"), FILE, &Surroundings::default()).unwrap();
        let (files, _) = write(dir.path(), &entries.instances()).unwrap();
        let mut verify = std::process::Command::new("systemd-analyze");
        let output = verify.arg("verify").args(files).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
