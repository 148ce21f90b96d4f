//! A server for tests: it does what servers do, well and badly. No part of what users get.
//!
//! See [`Options`]; all may be mixed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test program fails loudly")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread::{sleep, spawn};
use std::time::Duration;

#[derive(Default)]
struct Options {
    /// Listens there and answers all requests with 200 and its pid.
    port: Option<u16>,
    /// Listens only after so long.
    ready_after: Duration,
    exit_after: Option<Duration>,
    status: i32,
    /// Ends by SIGABRT, not by itself.
    abort: bool,
    /// Writes 1 MiB a second to each of standard output and standard error.
    spam: bool,
    ignore_term: bool,
    /// `group`: in a process group of its own; `session`: in a session of its own; `daemon`: in a session of
    /// its own and its parent gone. Each ignores SIGTERM and sleeps.
    children: Vec<String>,
    /// Its pid is appended there once it runs, one a line.
    note: Option<String>,
    /// Is one of the children: leads a session of its own first.
    own_session: bool,
}

fn main() {
    let options = read_options();
    if options.own_session {
        rustix::process::setsid().unwrap();
    }
    if options.ignore_term {
        ignore_term();
    }
    for kind in &options.children {
        child(kind, options.note.as_deref());
    }
    if let Some(note) = &options.note {
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(note).unwrap();
        file.write_all(format!("{}\n", std::process::id()).as_bytes()).unwrap();
    }
    println!("started");
    eprintln!("to standard error");
    if options.spam {
        spawn(|| spam(std::io::stdout()));
        spawn(|| spam(std::io::stderr()));
    }
    if let Some(port) = options.port {
        spawn(move || serve(port, options.ready_after));
    }
    match options.exit_after {
        Some(after) => sleep(after),
        None => loop {
            sleep(Duration::from_secs(3600));
        },
    }
    if options.abort {
        std::process::abort();
    }
    std::process::exit(options.status);
}

fn read_options() -> Options {
    let mut options = Options::default();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().unwrap_or_else(|| panic!("{argument} needs a value"));
        let milliseconds = |text: String| Duration::from_millis(text.parse().unwrap());
        match argument.as_str() {
            "--port" => options.port = Some(value().parse().unwrap()),
            "--ready-after" => options.ready_after = milliseconds(value()),
            "--exit-after" => options.exit_after = Some(milliseconds(value())),
            "--status" => options.status = value().parse().unwrap(),
            "--abort" => options.abort = true,
            "--spam" => options.spam = true,
            "--ignore-term" => options.ignore_term = true,
            "--child" => options.children.push(value()),
            "--note" => options.note = Some(value()),
            "--own-session" => options.own_session = true,
            other => panic!("no such option: {other}"),
        }
    }
    options
}

/// A signal that is blocked in all threads, and that nobody waits for, does nothing.
fn ignore_term() {
    let mut set = nix::sys::signal::SigSet::empty();
    set.add(nix::sys::signal::Signal::SIGTERM);
    set.thread_block().unwrap();
}

#[expect(clippy::zombie_processes, reason = "a server that does not care for its children")]
fn child(kind: &str, note: Option<&str>) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg("--ignore-term").stdin(Stdio::null());
    command.args(note.iter().flat_map(|note| ["--note", note]));
    match kind {
        "group" => command.process_group(0),
        "session" => command.arg("--own-session"),
        "daemon" => command.args(["--own-session", "--child", "session", "--exit-after", "0"]),
        other => panic!("no such kind of child: {other}"),
    };
    command.spawn().unwrap();
}

fn spam(mut to: impl Write) {
    let line = [b"x".repeat(127), b"\n".to_vec()].concat();
    loop {
        for _ in 0..(1 << 20) / 128 / 20 {
            to.write_all(&line).unwrap();
        }
        to.flush().unwrap();
        sleep(Duration::from_millis(50));
    }
}

fn serve(port: u16, ready_after: Duration) {
    sleep(ready_after);
    for stream in TcpListener::bind(("127.0.0.1", port)).unwrap().incoming().flatten() {
        spawn(move || answer(stream));
    }
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    while !request.ends_with(b"\r\n\r\n") {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            read => request.extend_from_slice(&buffer[..read]),
        }
    }
    let body = format!("{}\n", std::process::id());
    write!(stream, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}
