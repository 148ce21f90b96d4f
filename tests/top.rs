//! `agft top` and `agft demo --tui` in a pseudo-terminal: what they show, and that the terminal is given back.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::fs::File;
use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use rustix::fs::OFlags;
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};
use support::daemon::Bench;
use support::{PATIENCE, eventually};

const COLUMNS: u16 = 80;
const ROWS: u16 = 24;

/// What a terminal makes of the bytes that it is sent: as much of it as `agft top` uses.
struct Emulator {
    cells: Vec<Vec<char>>,
    at: (usize, usize),
    /// Bytes of a sequence or character that has not ended.
    rest: Vec<u8>,
    alternate: bool,
    cursor: bool,
    /// What was written outside the alternate screen.
    plain: String,
}

impl Emulator {
    fn new() -> Self {
        let cells = vec![vec![' '; COLUMNS.into()]; ROWS.into()];
        Self { cells, at: (0, 0), rest: Vec::new(), alternate: false, cursor: true, plain: String::new() }
    }

    fn take(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
        let rest = std::mem::take(&mut self.rest);
        let text = match std::str::from_utf8(&rest) {
            Ok(text) => text,
            Err(error) => std::str::from_utf8(&rest[..error.valid_up_to()]).unwrap(),
        };
        let mut used = 0;
        let mut letters = text.char_indices();
        while let Some((start, letter)) = letters.next() {
            if letter == '\u{1b}' {
                // CSI, parameters, and a letter that ends them.
                let Some((end, last)) =
                    letters.by_ref().skip(1).find(|(_, letter)| letter.is_ascii_alphabetic())
                else {
                    break;
                };
                self.sequence(&text[start + 2..end], last);
                used = end + 1;
            } else {
                self.put(letter);
                used = start + letter.len_utf8();
            }
        }
        self.rest = rest[used..].to_vec();
    }

    fn sequence(&mut self, parameters: &str, last: char) {
        match (parameters, last) {
            ("?1049", 'h') => (self.alternate, self.cells) = (true, Self::new().cells),
            ("?1049", 'l') => self.alternate = false,
            ("?25", 'l') => self.cursor = false,
            ("?25", 'h') => self.cursor = true,
            (_, 'H') => {
                let numbers: Vec<usize> = parameters.split(';').filter_map(|n| n.parse().ok()).collect();
                self.at = match numbers[..] {
                    [row, column] => (row - 1, column - 1),
                    _ => (0, 0),
                };
            }
            _ => {}
        }
    }

    fn put(&mut self, letter: char) {
        if !self.alternate {
            self.plain.push(letter);
        } else if let Some(cell) = self.cells.get_mut(self.at.0).and_then(|row| row.get_mut(self.at.1)) {
            *cell = letter;
            self.at.1 += 1;
        }
    }

    fn text(&self) -> String {
        self.cells.iter().map(|row| row.iter().collect::<String>() + "\n").collect()
    }
}

/// A program in a terminal; killed when this is dropped.
struct Shown {
    child: Child,
    user: Option<File>,
    /// The user has gone: whatever is still read from the terminal is not wanted.
    gone: Arc<AtomicBool>,
    terminal: File,
    before: Termios,
    screen: Arc<Mutex<Emulator>>,
}

impl Shown {
    fn start(command: &Command) -> Self {
        let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
            .expect("a pseudo-terminal");
        grantpt(&user).unwrap();
        unlockpt(&user).unwrap();
        let name = ptsname(&user, Vec::new()).unwrap();
        let terminal = rustix::fs::open(&name, OFlags::RDWR | OFlags::NOCTTY, rustix::fs::Mode::empty());
        let terminal = File::from(terminal.expect("its other end"));
        let size = Winsize { ws_row: ROWS, ws_col: COLUMNS, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&terminal, size).unwrap();
        let before = tcgetattr(&terminal).unwrap();
        // Its own session, whose terminal is this one: what runs the test may have another.
        let mut inside = Command::new("setsid");
        inside.arg("--ctty").arg(command.get_program()).args(command.get_args());
        inside.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        inside.env("TERM", "xterm-256color").env("LC_ALL", "C.UTF-8").env_remove("NO_COLOR");
        if let Some(dir) = command.get_current_dir() {
            inside.current_dir(dir);
        }
        let end = || Stdio::from(terminal.try_clone().unwrap());
        let child = inside.stdin(end()).stdout(end()).stderr(end()).spawn().expect("setsid of util-linux");
        let user = File::from(user);
        let screen = Arc::new(Mutex::new(Emulator::new()));
        let (mut reader, seen) = (user.try_clone().unwrap(), Arc::clone(&screen));
        let gone = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&gone);
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut bytes) {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                seen.lock().unwrap().take(&bytes[..count]);
            }
        });
        Self { child, user: Some(user), gone, terminal, before, screen }
    }

    fn text(&self) -> String {
        self.screen.lock().unwrap().text()
    }

    /// Waits until all of these are on the screen at once.
    fn wait_for(&self, parts: &[&str]) -> String {
        let has = |text: &String| parts.iter().all(|part| text.contains(part));
        let text = eventually(|| self.text(), has);
        assert!(has(&text), "not all of {parts:?} in\n{text}{}", self.plain());
        text
    }

    fn press(&self, keys: &str) {
        rustix::io::write(self.user.as_ref().unwrap(), keys.as_bytes()).unwrap();
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// The window is closed: nobody is at the terminal's other end any more, once the reader has seen the next output.
    fn hang_up(&mut self) -> ExitStatus {
        self.gone.store(true, Ordering::SeqCst);
        self.user = None;
        let ended = eventually(|| self.child.try_wait().unwrap(), Option::is_some);
        let status = ended.expect("it ends with its terminal");
        assert_ne!(status.code(), Some(101), "a panic");
        status
    }

    /// Waits for the end of the program, and asserts that the terminal is as it was.
    fn end(&mut self) -> ExitStatus {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(start.elapsed() < PATIENCE, "it does not end\n{}", self.text());
            std::thread::sleep(std::time::Duration::from_millis(5));
        };
        let given_back = || {
            let screen = self.screen.lock().unwrap();
            (screen.alternate, screen.cursor)
        };
        assert_eq!(eventually(given_back, |now| *now == (false, true)), (false, true), "screen, cursor");
        let after = tcgetattr(&self.terminal).unwrap();
        assert_eq!(
            (after.input_modes, after.output_modes, after.local_modes, after.control_modes),
            (
                self.before.input_modes,
                self.before.output_modes,
                self.before.local_modes,
                self.before.control_modes
            ),
            "the terminal's modes"
        );
        status
    }

    /// What was written outside the view.
    fn plain(&self) -> String {
        self.screen.lock().unwrap().plain.clone()
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        // Ended already: then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn has_clock(text: &str) -> bool {
    let words: Vec<&str> = text.split_whitespace().collect();
    words
        .windows(2)
        .any(|pair| pair[1].starts_with("MHz") && pair[0].parse::<u32>().is_ok_and(|mhz| mhz >= 100))
}

#[test]
fn top_shows_the_daemon_and_orders_it_only_when_told_twice() {
    let bench = Bench::new();
    let mut daemon = bench.serve(&[]);
    let mut top = Shown::start(&bench.command(&["top"]));
    let text = top.wait_for(&["EXPL", "live, up", "[arms]", "requests"]);
    assert!(has_clock(&text) && text.contains(&format!("pid {}", daemon.pid())), "{text}");
    top.press("\t");
    top.wait_for(&["[news]", "decision", "MHz core: "]);
    top.press("p");
    top.wait_for(&["Pause agft", "y: yes"]);
    top.press("n");
    top.wait_for(&["nothing was asked"]);
    assert!(!bench.run(&["status"]).out.contains("PAUSED"));
    top.press("p");
    top.wait_for(&["Pause agft"]);
    top.press("y");
    top.wait_for(&["PAUSED", "driver default in force"]);
    assert!(bench.is_free());
    top.press("p");
    top.wait_for(&["Resume agft?"]);
    top.press("y");
    bench.wait_for_lock(&daemon);
    top.press("q");
    assert_eq!(top.end().code(), Some(0), "{}", top.plain());
    daemon.stop();
}

#[test]
fn top_outlives_the_daemon_and_follows_its_successor_and_a_signal_gives_the_terminal_back() {
    let bench = Bench::new();
    let mut daemon = bench.serve(&[]);
    let mut top = Shown::start(&bench.command(&["top"]));
    top.wait_for(&["live, up"]);
    daemon.stop();
    let text = top.wait_for(&["NOT LIVE", "trying again every second"]);
    assert!(has_clock(&text), "the last picture stays\n{text}");
    let mut next = bench.start(&[]);
    top.wait_for(&["live, up", &format!("pid {}", next.pid())]);
    top.signal(Signal::TERM);
    assert_eq!(top.end().code(), Some(0));
    next.stop();
}

#[test]
fn view_ends_with_its_terminal() {
    let bench = Bench::new();
    let mut daemon = bench.serve(&[]);
    let mut top = Shown::start(&bench.command(&["top"]));
    top.wait_for(&["live, up"]);
    top.hang_up();
    let mut demo = Shown::start(&bench.command(&["demo", "--tui", "--seconds", "120"]));
    demo.wait_for(&["live, up"]);
    demo.hang_up();
    assert!(daemon.is_running());
    daemon.stop();
}

#[test]
fn without_terminal_or_daemon_the_error_says_what_to_do() {
    let bench = Bench::new();
    let piped = bench.run(&["top"]);
    assert_eq!((piped.code, piped.out.as_str()), (Some(1), ""));
    assert!(piped.err.contains("not a terminal; `agft status --watch`"), "{}", piped.err);
    let demo = bench.run(&["demo", "--tui"]);
    assert!(demo.code == Some(1) && demo.err.contains("not a terminal"), "{}", demo.err);
    let mut nobody = Shown::start(&bench.command(&["top"]));
    assert_eq!(nobody.end().code(), Some(1));
    eventually(|| nobody.plain(), |text| text.contains("no agft runs here"));
    assert!(nobody.plain().contains("no agft runs here"), "{}", nobody.plain());
}

#[test]
fn demo_ends_early_with_its_summary_on_the_users_own_screen() {
    let bench = Bench::new();
    let mut demo = Shown::start(&bench.command(&["demo", "--tui"]));
    demo.wait_for(&["RTX 4090", "live, up", "EXPLORATION"]);
    demo.press("q");
    assert_eq!(demo.end().code(), Some(0), "{}", demo.plain());
    let summary = eventually(|| demo.plain(), |text| text.contains("clocks given back"));
    assert!(summary.contains("energy (J)") && summary.contains("clocks given back"), "{summary}");
    assert!(!summary.contains("last third"), "there was none\n{summary}");
}

#[test]
fn panic_gives_the_terminal_back_before_it_is_reported() {
    let bench = Bench::new();
    let mut demo = Shown::start(&bench.command(&["--panic-at-tick", "4", "demo", "--tui"]));
    assert_ne!(demo.end().code(), Some(0));
    let told = eventually(|| demo.plain(), |text| text.contains("panicked"));
    assert!(told.contains("panicked"), "{told}");
}
